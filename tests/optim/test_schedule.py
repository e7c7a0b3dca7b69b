import math

import pytest
import torch
from torch import nn

from onecycle.errors import UsageError
from onecycle.optim.lr_rule import LRFinding
from onecycle.optim.schedule import one_cycle
from onecycle.recipe import Recipe
from onecycle.run_parts import one_cycle_of


def schedule(epochs=24, steps_per_epoch=98, peak_epoch=5.0, lr_max=0.01, lr_min=0.0005):
    """The rates of all steps, as the training loop uses them, and the optimizer."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1.0)
    total = epochs * steps_per_epoch
    scheduler = one_cycle(
        optimizer, lr_max=lr_max, lr_min=lr_min, total_steps=total,
        peak_step=round(peak_epoch * steps_per_epoch),
    )  # fmt: skip
    rates = []
    for step in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    return rates, optimizer


def test_the_assignments_cycle_by_exact_numbers():
    rates, _ = schedule()
    assert len(rates) == 2352
    assert rates[0] == pytest.approx(0.0005, rel=1e-12)
    assert max(range(2352), key=rates.__getitem__) == 489
    assert rates[489] == pytest.approx(0.01, rel=1e-12)
    assert rates[-1] == pytest.approx(0.0005, rel=1e-9)
    # two straight lines
    assert rates[100] == pytest.approx(0.0005 + 0.0095 * 100 / 489, rel=1e-9)
    assert rates[1000] == pytest.approx(0.01 - 0.0095 * (1000 - 489) / (2351 - 489), rel=1e-9)


def test_beta1_stays_as_it_is_or_goes_down_and_up_against_the_rate():
    def betas(momentum):
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.9, 0.99))
        scheduler = one_cycle(
            optimizer, lr_max=0.1, lr_min=0.01, total_steps=10, peak_step=4, momentum=momentum
        )
        for _ in range(9):
            yield optimizer.param_groups[0]["betas"]
            optimizer.step()
            scheduler.step()
        yield optimizer.param_groups[0]["betas"]

    assert set(betas(None)) == {(0.9, 0.99)}
    cycled = list(betas((0.95, 0.85)))
    assert [pair[0] for pair in cycled] == pytest.approx(
        [0.95 - 0.1 * i / 3 for i in range(4)] + [0.85 + 0.1 * i / 6 for i in range(1, 7)]
    )
    assert {pair[1] for pair in cycled} == {0.99}


def test_a_recipe_that_cycles_beta1_has_its_schedule():
    recipe = Recipe(epochs=4, beta1=0.95, beta1_at_peak=0.85)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.95, 0.99))
    one_cycle_of(optimizer, recipe, LRFinding([], [], [], 0.1, 0.01, "given"), 10)
    group = optimizer.param_groups[0]
    assert group["betas"] == (0.95, 0.99) and group["base_momentum"] == 0.85


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "peak_epoch"),
    [(24, 98, 5), (1, 3, 5 / 24), (1, 4, 0.9), (3, 1, 0.01), (2, 7, 1.99), (10, 98, 10 * 5 / 24),
     (5, 11, 1), (100, 2, 99.9)],
)  # fmt: skip
def test_every_cycle_rises_to_one_peak_and_falls_back_and_is_never_negative(
    epochs, steps_per_epoch, peak_epoch
):
    rates, _ = schedule(epochs, steps_per_epoch, peak_epoch)
    peak = rates.index(max(rates))
    assert all(math.isfinite(rate) and rate >= 0.0005 * (1 - 1e-9) for rate in rates)
    assert rates[0] == pytest.approx(0.0005) and rates[-1] == pytest.approx(0.0005)
    assert rates[peak] == pytest.approx(0.01, rel=1e-9)
    assert 0 < peak < len(rates) - 1
    assert all(a < b for a, b in zip(rates[:peak], rates[1 : peak + 1]))
    assert all(a > b for a, b in zip(rates[peak:], rates[peak + 1 :]))


def test_adams_betas_stay():
    _, optimizer = schedule(2, 5, 0.5)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("lr_max", "lr_min", "total_steps", "message"),
    [
        (0.1, 0.0, 10, "0 < lr_min < lr_max"),
        (0.1, 0.2, 10, "0 < lr_min < lr_max"),
        (math.nan, 0.1, 10, "0 < lr_min < lr_max"),
        (math.inf, 0.1, 10, "0 < lr_min < lr_max"),
        (0.1, 0.01, 2, "3 steps or more, and there are 2"),
    ],
)
def test_impossible_cycles_are_refused(lr_max, lr_min, total_steps, message):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(UsageError, match=message):
        one_cycle(optimizer, lr_max=lr_max, lr_min=lr_min, total_steps=total_steps, peak_step=1)
