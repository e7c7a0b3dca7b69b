"""The range test: the learning rate is raised step by step until the loss diverges.

The sweep is torch-lr-finder's, which this file bends in six places, because its last release (0.2.2)
prints, shows a widget that cannot be switched off, moves the global random numbers, takes only
torch's loaders, continues after a loss that is not finite, and measures divergence against the lowest
loss, which on easy images is near 0. What is a private class below is one of these places.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onecycle.checks import as_pair, check_first_batch, check_optimizer, names_loss
from onecycle.errors import UsageError
from onecycle.optim.lr_rule import LRFinding, suggest_lr
from onecycle.optim.muon import Muon
from onecycle.outputs import class_scores

DIVERGED = 4.0
"""A sweep ends at a loss of so many times the highest of its first three."""


def usual_rates(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Where a sweep ends, and a learning rate that is safe where none can be found.

    Source:
        SGD: He et al., "Deep Residual Learning" (2015), section 4.2. Muon: the preset ``speedrun``.
        Adam and others: trainings of the assignment at full size.
    """
    if isinstance(optimizer, torch.optim.SGD):
        return 10.0, 0.1
    return (1.0, 0.1) if isinstance(optimizer, Muon) else (0.1, 0.002)


def find_lr(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module,
    loader: DataLoader,
    *,
    start_lr: float = 1e-6,
    end_lr: float | None = None,
    num_steps: int = 100,
    num_sweeps: int = 3,
    ratio: float | None = None,
    autocast_dtype: torch.dtype = torch.float32,
    on_step: Callable[[int, int], None] | None = None,
) -> LRFinding:
    """Raise the learning rate exponentially until the loss diverges, and suggest LRMAX and LRMIN.

    The test runs on copies: model, optimizer and the global random numbers stay as they are. Each
    sweep begins with fresh copies and takes other batches; the rule sees the mean of their losses.

    Args:
        model: (N, 3, H, W) -> (N, K), on its device, as it will be trained.
        optimizer: of the model's parameters, without a scheduler. All its groups get the same
            learning rate, also where they were given different ones.
        criterion: loss to minimise, of (output, labels).
        loader: training batches of any kind; started again when it ends. If it has
            ``set_epoch(epoch, start)``, that is called before, with 1, 2, ... and 0.
        start_lr: learning rate of the first step, above 0.
        end_lr: learning rate of the last step, reached unless the loss is not finite, or four times
            what it was at the start, before. None: 10 for SGD, 1 for Muon, 0.1 for all others.
        num_steps: steps of each sweep, 20 or more.
        num_sweeps: sweeps, 1 or more.
        ratio: LRMAX / LRMIN, above 1; None: LRMIN is found.
        autocast_dtype: type of the matrix products, as in training.
        on_step: called after each step with the number of steps done and that of all sweeps.

    Returns:
        The curve, and LRMAX and LRMIN by the rule of :func:`onecycle.optim.lr_rule.suggest_lr`.

    Raises:
        DataError: an image of the first batch is not finite.
        RangeTestError: the curve says nothing about the learning rate, see ``suggest_lr``.
        UsageError: the optimizer has a scheduler, or cannot train the model; the first batch is
            none that the network can be trained on; a number is out of range; or a batch does not
            fit the GPU's memory.

    Source:
        Smith, "Cyclical Learning Rates for Training Neural Networks" (2015).
    """
    usual_end, safe = usual_rates(optimizer)
    end_lr = usual_end if end_lr is None else end_lr
    check_optimizer(model, optimizer, criterion)
    _check_arguments(optimizer, start_lr, end_lr, num_sweeps)
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype != torch.float32)

    first = []

    def check(images: Tensor, labels: Tensor) -> None:
        first[:] = images.to(device), labels.to(device)
        check_first_batch(model, *first, autocast)

    batches = _Batches(loader, check)
    losses = np.full((num_sweeps, num_steps), np.inf)  # beyond its end a sweep has diverged
    with _global_randomness_kept(device):
        endless = _finder_module().TrainDataLoaderIter(batches)  # it accepts no other loaders
        for sweep, row in enumerate(losses):
            finder = _finder(*copy.deepcopy((model, optimizer)), criterion, device, autocast_dtype)
            with (
                names_loss(model, criterion, first, autocast),
                _silenced(on_step, sweep * num_steps, losses.size),
            ):
                found = _sweep(finder, endless, batches, (start_lr, end_lr, num_steps))
            row[: len(found)] = found
    return suggest_lr(
        np.geomspace(start_lr, end_lr, num_steps), losses, ratio=ratio,
        way_out=f"give lr_max ({safe:g} is safe with {type(optimizer).__name__}), or sweep other "
        "learning rates",
    )  # fmt: skip


def _check_arguments(optimizer, start_lr: float, end_lr: float, num_sweeps: int) -> None:
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise UsageError(
            "the optimizer already has a scheduler, which sets its learning rate; run find_lr "
            "before the scheduler is made, or with a new optimizer"
        )
    if not 0 < start_lr < end_lr:
        raise UsageError(f"start_lr is {start_lr}; it must be above 0 and below end_lr ({end_lr})")
    if num_sweeps < 1:
        raise UsageError(f"num_sweeps is {num_sweeps}; it must be 1 or more")


def _finder_module() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its tqdm warns in notebooks
        import torch_lr_finder  # here, so that training at a given learning rate needs no such package
    return torch_lr_finder


def _finder(model, optimizer, criterion, device: torch.device, dtype: torch.dtype) -> Any:
    """torch-lr-finder's object for this model, in mixed precision where that is asked for."""
    return _finder_module().LRFinder(
        model,
        optimizer,
        _UntilDiverged(criterion),
        device=device,
        amp_backend="torch",
        amp_config={
            "device_type": device.type,
            "dtype": dtype,
            "enabled": dtype != torch.float32,
        },
        grad_scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
    )


def _sweep(
    finder: Any, endless: Any, batches: _Batches, rates: tuple[float, float, int]
) -> list[float]:
    """The loss at each step of a sweep, until it diverges."""
    start_lr, end_lr, num_steps = rates
    try:
        with contextlib.suppress(_Diverged):
            finder.range_test(
                endless,
                start_lr=start_lr,
                end_lr=end_lr,
                num_iter=num_steps,
                smooth_f=0,
                diverge_th=math.nan,  # never
                non_blocking_transfer=finder.device.type == "cuda",
            )
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"the memory of {finder.device} does not hold {batches} in the range test; "
            "lower batch_size, or give lr_max"
        ) from error
    return finder.history["loss"]


@contextlib.contextmanager
def _silenced(
    on_step: Callable[[int, int], None] | None, before: int, total: int
) -> Iterator[None]:
    """Inside the block torch-lr-finder prints nothing and calls ``on_step`` in place of its bar.

    The bar cannot be switched off, and GitHub refuses to show a notebook with its widget.
    """
    stdout = sys.stdout

    def steps(numbers: range) -> Iterator[int]:
        for number in numbers:
            yield number
            if on_step is not None:
                with contextlib.redirect_stdout(stdout):
                    on_step(before + number + 1, total)

    with (
        mock.patch.object(_finder_module().lr_finder, "tqdm", steps),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


class _Batches:
    """Any loader, each time in a new order, that knows the size of its batches.

    The first batch is checked.
    """

    def __init__(self, loader, check: Callable[[Tensor, Tensor], None]) -> None:
        self.loader = loader
        self.check = check
        self.epoch = 0
        self.size = None

    def __iter__(self) -> Iterator:
        self.epoch += 1
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(self.epoch, 0)
        for batch in self.loader:
            images, labels = as_pair(batch)
            if self.size is None:
                self.check(images, labels)
            self.size = len(labels)
            yield images, labels

    def __str__(self) -> str:
        return "a batch" if self.size is None else f"batches of {self.size}"


class _Diverged(Exception):
    pass


class _UntilDiverged(nn.Module):
    """Ends a sweep at a loss that is not finite or far above the first ones."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion
        self.first = []

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
        loss = self.criterion(class_scores(output), labels)
        value = loss.item()
        if not math.isfinite(value):
            raise _Diverged
        if len(self.first) < 3:
            self.first.append(value)
        elif value > DIVERGED * max(self.first) > 0:
            raise _Diverged
        return loss


@contextlib.contextmanager
def _global_randomness_kept(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type in ("cuda", "mps") else []
    try:
        kind = device.type if devices else "cuda"
        with torch.random.fork_rng(devices=devices, device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
