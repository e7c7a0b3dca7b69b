import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from onecycle.errors import UsageError
from onecycle.optim.lr_finder import find_lr, suggest_lr
from onecycle.optim.schedule import one_cycle


def curve(diverging_at=1e-2, steps=100):
    """Falls, stays on a plateau, and climbs from ``diverging_at`` on."""
    lrs = np.geomspace(1e-5, 0.1, steps)
    fall = 1.2 / (1 + np.exp(2 * np.log(lrs / 1e-4)))
    climb = np.maximum(0, np.log(lrs / diverging_at)) ** 2
    return lrs, 1.7 + fall + climb


@pytest.mark.parametrize("ratio", [0.5, 1.0, math.nan])
def test_a_ratio_that_would_put_lrmin_above_lrmax_is_refused(ratio):
    with pytest.raises(UsageError, match="must be above 1"):
        suggest_lr(*curve(), ratio=ratio)


@pytest.mark.parametrize("diverging_at", [1e-3, 3e-3, 1e-2, 3e-2])
def test_suggestion_lies_at_the_end_of_the_plateau(diverging_at):
    lrs, losses = curve(diverging_at)
    noisy = losses + np.random.default_rng(0).normal(0, 0.02, len(losses))
    for values in (losses, noisy):
        finding = suggest_lr(lrs, values, ratio=25)
        assert diverging_at / 2 < finding.lr_max < diverging_at * 2
        assert finding.lr_min == finding.lr_max / 25
        assert finding.lr_max in finding.lrs


def test_range_test_takes_a_loader_that_is_none_of_torchs():
    class Loader:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            return iter(self.loader)

    curves = []
    for kind in (Loader, lambda loader: loader):
        model, optimizer, loader = problem()
        torch.manual_seed(0)
        finding = find_lr(
            model, optimizer, nn.CrossEntropyLoss(), kind(loader), end_lr=100.0, num_steps=80
        )
        curves.append(finding.losses)
    assert curves[0] == curves[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_follows_a_loss_that_is_not_finite_does_not_count(bad):
    lrs, losses = curve(3e-3)
    expected = suggest_lr(lrs[:80], losses[:80])
    losses[80] = bad
    losses[81:] = 0.0  # a tempting minimum
    assert suggest_lr(lrs, losses) == expected


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([2.0] * 19, "19 finite losses"),
        ([2.0] * 5 + [math.nan] * 60, "5 finite losses"),
        ([], "0 finite losses"),
        ([2.3] * 60, "does not fall"),
        (list(np.linspace(2.0, 9.0, 60)), "does not fall"),
        (list(np.linspace(9.0, 2.0, 60)), "has not risen again"),
    ],
)
def test_a_curve_that_says_nothing_gives_a_reason_and_no_rate(losses, message):
    with pytest.raises(UsageError, match=message):
        suggest_lr(np.geomspace(1e-5, 1, max(len(losses), 1))[: len(losses)], losses)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(12, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        return self.layers(x)


def problem():
    torch.manual_seed(0)
    x = torch.randn(96, 3, 2, 2)
    y = x.flatten(1)[:, :3].argmax(1)
    model = Tiny()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.123)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    model(x), nn.CrossEntropyLoss()(model(x), y).backward()
    optimizer.step()  # so that there is a state to disturb
    optimizer.zero_grad()
    return model, optimizer, loader


def plain(value):
    """Tensors and arrays as lists, all the way down, so that == compares every number."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, (torch.Tensor, np.ndarray)) else value


def state(model, optimizer):
    return plain((
        model.state_dict(), [p.grad for p in model.parameters()], model.training,
        optimizer.state_dict(), torch.get_rng_state(), np.random.get_state(), random.getstate(),
    ))  # fmt: skip


class Scripted(nn.CrossEntropyLoss):
    """The true loss a few times, then whatever ``end`` makes of it."""

    def __init__(self, end, calls=30):
        super().__init__()
        self.calls, self.end = -calls, end

    def forward(self, output, labels):
        self.calls += 1
        loss = super().forward(output, labels)
        return loss if self.calls <= 0 else self.end(loss)


def interrupt(_loss):
    raise KeyboardInterrupt


def test_range_test_leaves_no_trace(capsys):
    model, optimizer, loader = problem()
    before = state(model, optimizer)
    find_lr(model, optimizer, nn.CrossEntropyLoss(), loader, end_lr=100.0, num_steps=80)
    assert state(model, optimizer) == before
    one_cycle(optimizer, lr_max=0.1, lr_min=0.01, total_steps=10, peak_step=3)
    assert capsys.readouterr().out == ""


def test_an_optimizer_with_a_scheduler_is_refused_in_our_words():
    model, optimizer, loader = problem()
    one_cycle(optimizer, lr_max=0.1, lr_min=0.01, total_steps=10, peak_step=3)
    before = state(model, optimizer)
    with pytest.raises(UsageError, match="^the optimizer already has a scheduler, .*run find_lr"):
        find_lr(model, optimizer, nn.CrossEntropyLoss(), loader)
    assert state(model, optimizer) == before


def test_an_interrupted_range_test_leaves_no_trace():
    model, optimizer, loader = problem()
    before = state(model, optimizer)
    with pytest.raises(KeyboardInterrupt):
        find_lr(model, optimizer, Scripted(interrupt), loader)
    assert state(model, optimizer) == before


def test_a_full_gpu_is_one_line_that_names_the_batch_size():
    def fail(_loss):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model, optimizer, loader = problem()
    before = state(model, optimizer)
    with pytest.raises(UsageError, match="batches of 16 in the range test; lower batch_size, or"):
        find_lr(model, optimizer, Scripted(fail), loader)
    assert state(model, optimizer) == before


def test_range_test_sweeps_exponentially_from_the_first_to_the_last_rate(capsys):
    model, optimizer, loader = problem()
    done = []

    def on_step(*numbers):
        done.append(numbers)
        print("a line of the caller's")

    finding = find_lr(
        model, optimizer, nn.CrossEntropyLoss(), loader,
        start_lr=1e-4, end_lr=30.0, num_steps=60, on_step=on_step,
    )  # fmt: skip
    assert capsys.readouterr().out == "a line of the caller's\n" * len(done)
    expected = np.geomspace(1e-4, 30.0, 60)[: len(finding.lrs)]
    np.testing.assert_allclose(finding.lrs, expected, rtol=1e-6)
    assert done[0] == (1, 60) and len(finding.losses) >= len(done)
    assert 1e-4 < finding.lr_max < 30


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_sweep(bad):
    model, optimizer, loader = problem()
    criterion = Scripted(lambda loss: loss * bad, calls=10)
    with pytest.raises(UsageError, match="the range test has 10 finite losses"):
        find_lr(model, optimizer, criterion, loader, end_lr=1e-2, num_steps=60)
    assert criterion.calls == 1  # the first that was not finite
