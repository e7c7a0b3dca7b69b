import contextlib
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from onecycle.errors import RangeTestError, UsageError
from onecycle.optim.lr_finder import find_lr
from onecycle.optim.schedule import one_cycle


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
        start_lr=1e-4, end_lr=30.0, num_steps=60, num_sweeps=2, on_step=on_step,
    )  # fmt: skip
    assert capsys.readouterr().out == "a line of the caller's\n" * len(done)
    expected = np.geomspace(1e-4, 30.0, 60)[: len(finding.lrs)]
    np.testing.assert_allclose(finding.lrs, expected, rtol=1e-6)
    assert done[0] == (1, 120) and (61, 120) in done and len(done) <= 120
    assert 1e-4 < finding.lr_max < 30


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e3])
def test_a_loss_that_has_diverged_ends_the_sweep(bad):
    model, optimizer, loader = problem()
    criterion = Scripted(lambda loss: loss * bad, calls=8)
    with pytest.raises(RangeTestError, match="the range test has 8 finite losses in 60 steps"):
        find_lr(
            model, optimizer, criterion, loader, end_lr=1e-2, num_steps=60, num_sweeps=1
        )  # fmt: skip
    assert criterion.calls == 1  # the first that had


def test_a_loss_that_is_many_times_the_minimum_has_not_diverged():
    """On easy images the minimum is near 0."""
    model, optimizer, loader = problem()
    scales = iter([1.0] * 30 + [1e-3] * 5 + [0.5] * 25)

    class Easy(nn.CrossEntropyLoss):
        def forward(self, output, labels):
            return super().forward(output, labels) * next(scales)

    options = {"start_lr": 1e-9, "end_lr": 1e-8, "num_steps": 60, "num_sweeps": 1}
    with pytest.raises(RangeTestError) as error:
        find_lr(model, optimizer, Easy(), loader, **options)
    assert len(error.value.finding.losses) == 60


def test_each_sweep_begins_anew_on_other_batches():
    model, optimizer, loader = problem()

    class Numbered:
        """Two batches per epoch, of which the first images tell the epoch."""

        epochs = []

        def set_epoch(self, epoch, start):
            self.epochs.append((epoch, start))

        def __iter__(self):
            yield from list(loader)[:2]

    class Noted(nn.CrossEntropyLoss):
        taken = []

        def forward(self, output, labels):
            self.taken.append(labels.tolist())
            return super().forward(output, labels)

    with contextlib.suppress(RangeTestError):
        find_lr(model, optimizer, Noted(), Numbered(), num_steps=20, num_sweeps=2)
    assert Numbered.epochs == [(number, 0) for number in range(1, 21)]
    assert Noted.taken[0] != Noted.taken[20]

    class Constant(Numbered):
        def __iter__(self):
            while True:
                yield torch.ones(4, 3, 2, 2), torch.arange(4) % 3

    model.layers[4].p = 0.0  # no random numbers
    curves = []
    for sweeps in (1, 3):
        with pytest.raises(RangeTestError) as error:
            find_lr(
                model, optimizer, nn.CrossEntropyLoss(), Constant(), num_steps=20,
                num_sweeps=sweeps, end_lr=1e-4,
            )  # fmt: skip
        curves.append(error.value.finding.losses)
    assert curves[1] == pytest.approx(curves[0])


@pytest.mark.parametrize(
    ("make", "end", "safe"), [(torch.optim.SGD, 10, "0.1"), (torch.optim.Adam, 0.1, "0.002")]
)
def test_the_optimizer_decides_where_the_sweep_ends_and_what_is_safe(make, end, safe):
    model, _, loader = problem()
    optimizer, criterion = make(model.parameters(), lr=1.0), Scripted(lambda loss: loss * 0 + 1, 3)
    with pytest.raises(
        RangeTestError, match=f"lr_max .{safe} is safe with {make.__name__}"
    ) as error:
        find_lr(model, optimizer, criterion, loader, num_steps=20)
    assert error.value.finding.lrs[-1] == pytest.approx(end)


def test_an_optimizer_of_another_model_is_refused():
    model, _, loader = problem()
    optimizer = torch.optim.Adam(Tiny().parameters(), lr=0.1)
    with pytest.raises(UsageError, match="holds none of the model's trainable parameters"):
        find_lr(model, optimizer, nn.CrossEntropyLoss(), loader)


def test_a_sweep_that_would_not_rise_and_none_at_all_are_refused():
    model, optimizer, loader = problem()
    with pytest.raises(UsageError, match="num_sweeps is 0; it must be 1 or more"):
        find_lr(model, optimizer, nn.CrossEntropyLoss(), loader, num_sweeps=0)
    with pytest.raises(UsageError, match=r"start_lr is 5; .* below end_lr \(0.1\)"):
        find_lr(model, optimizer, nn.CrossEntropyLoss(), loader, start_lr=5)
