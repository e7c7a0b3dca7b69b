import math

import numpy as np
import pytest

from onecycle.errors import RangeTestError, UsageError
from onecycle.optim.lr_rule import suggest_lr

CENTRE = 1e-3


def curve(centre=CENTRE, steps=100, noise=0.0, seed=0, start=2.9, low=1.7):
    """Falls from ``start`` to ``low`` and rises again, alike on both sides of the centre."""
    lrs = np.geomspace(1e-6, 0.1, steps)
    away = np.abs(np.log10(lrs / centre))
    losses = low + (start - low) / (1 + np.exp(6 * (1 - away)))
    return lrs, losses + np.random.default_rng(seed).normal(0, noise, steps)


@pytest.mark.parametrize("steps", [20, 28, 60, 100, 400])
@pytest.mark.parametrize("centre", [3e-4, 1e-3, 3e-3])
def test_lrmax_follows_the_centre_of_the_valley_whatever_the_number_of_steps(steps, centre):
    for seed in range(5):
        found = suggest_lr(*curve(centre, steps, noise=0.1, seed=seed))
        assert 3.5 * centre / 1.3 < found.lr_max < 3.5 * centre * 1.3
        assert len(found.lrs) == len(found.losses) == len(found.smoothed) == steps


def test_the_loss_on_flat_ground_does_not_move_lrmax_far():
    lrs, losses = curve()
    expected = suggest_lr(lrs, losses).lr_max
    for lowest in (5e-4, 2e-3):  # where chance puts the minimum
        changed = losses - 0.05 * np.exp(-((np.log10(lrs / lowest) / 0.05) ** 2))
        assert suggest_lr(lrs, changed).lr_max == pytest.approx(expected, rel=0.05)


def test_lrmax_is_not_beyond_a_narrow_valley():
    lrs = np.geomspace(1e-6, 0.1, 200)
    losses = 2 - np.exp(-((np.log10(lrs / CENTRE) / 0.25) ** 2))
    found = suggest_lr(lrs, losses)
    assert CENTRE < found.lr_max < 3 * CENTRE and "at most that at its end" in found.rule


def test_lrmin_is_where_the_fall_begins():
    lrs, losses = curve(steps=200)
    found = suggest_lr(lrs, losses)
    smooth = np.interp(np.log(found.lr_min), np.log(lrs), found.smoothed)
    assert found.lr_min < CENTRE and smooth == pytest.approx(2.9 - 0.2 * 1.2, abs=0.03)
    assert found.lr_max / 1000 < found.lr_min < found.lr_max / 20


@pytest.mark.parametrize("ratio", [20, 1000])
def test_a_found_lrmin_has_bounds(ratio):
    lrs = np.geomspace(1e-7, 0.1, 200)
    x = np.log10(lrs)
    fall = np.clip((x + 6.5) / 3, 0, 1) if ratio == 1000 else np.clip((x + 2.9) / 0.1, 0, 1)
    rise = np.clip((x + 2) / 0.5, 0, 1)
    found = suggest_lr(lrs, 2 - fall + 1.5 * rise)
    assert found.lr_max / found.lr_min == pytest.approx(ratio)
    assert f"LRMAX / {ratio}" in found.rule


def test_a_given_ratio_is_kept():
    found = suggest_lr(*curve(), ratio=25)
    assert found.lr_min == found.lr_max / 25


@pytest.mark.parametrize("ratio", [0.5, 1.0, math.nan])
def test_a_ratio_that_would_put_lrmin_above_lrmax_is_refused(ratio):
    with pytest.raises(UsageError, match="must be above 1"):
        suggest_lr(*curve(), ratio=ratio)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_the_divergence_and_the_end(bad):
    lrs, losses = curve()
    expected = suggest_lr(lrs, losses)
    diverged = int(np.searchsorted(lrs, 1.1e-2))
    losses[diverged] = bad
    losses[diverged + 1 :] = 0.0  # a tempting minimum
    found = suggest_lr(lrs, losses)
    assert len(found.losses) == diverged and np.isfinite(found.smoothed).all()
    assert found.lr_max == pytest.approx(expected.lr_max, rel=0.15)


def test_how_far_the_loss_diverges_does_not_matter():
    lrs, losses = curve()
    high = losses.copy()
    losses[-10:], high[-10:] = 10.0, 1e9
    assert suggest_lr(lrs, losses).lr_max == pytest.approx(suggest_lr(lrs, high).lr_max)


def test_a_loss_by_chance_in_the_valley_does_not_divide_it():
    lrs, losses = curve(steps=20)
    expected = suggest_lr(lrs, losses).lr_max
    losses[12] = 2.8
    assert suggest_lr(lrs, losses).lr_max == pytest.approx(expected, rel=0.25)


def test_several_sweeps_count_as_their_mean():
    lrs, _ = curve()
    losses = [curve(noise=0.3, seed=seed)[1] for seed in range(3)]
    found, mean = suggest_lr(lrs, losses), suggest_lr(lrs, np.mean(losses, axis=0))
    assert (found.lr_max, found.lr_min, found.losses) == (mean.lr_max, mean.lr_min, mean.losses)
    assert "3 sweeps" in found.rule


@pytest.mark.parametrize("steps", [20, 40, 100])
@pytest.mark.parametrize("decades", [1, 5])
def test_noise_is_not_taken_for_a_curve(steps, decades):
    answers = 0
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0.7, 0.3, steps)
        try:
            suggest_lr(np.geomspace(1e-6, 10.0 ** (decades - 6), steps), noise)
            answers += 1
        except RangeTestError:
            pass
    assert answers <= 1


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([2.0] * 19, "19 finite losses in 19 steps"),
        ([2.0] * 5 + [math.nan] * 60, "5 finite losses in 65"),
        ([], "0 finite losses"),
        ([2.3] * 60, "does not fall"),
        (list(np.linspace(2.0, 9.0, 60)), "does not fall"),
        (list(np.linspace(9.0, 2.0, 60)), "has not risen again"),
        (curve(noise=1.2, steps=60, seed=3)[1].tolist(), "noise|scatter"),
    ],
)
def test_a_curve_that_says_nothing_gives_a_reason_and_the_curve_but_no_rate(losses, message):
    with pytest.raises(RangeTestError, match=f"({message}).*: give lr_max") as error:
        suggest_lr(np.geomspace(1e-5, 1, max(len(losses), 1))[: len(losses)], losses)
    found = error.value.finding
    assert (found.lr_max, found.lr_min) == (None, None)
    assert found.losses == [loss for loss in losses if math.isfinite(loss)]
