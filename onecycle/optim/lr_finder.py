"""The range test: the learning rate is raised step by step until the loss diverges.

The sweep is torch-lr-finder's, which this file bends in five places, because its last release (0.2.2)
prints, shows a widget that cannot be switched off, moves the global random numbers, takes only
torch's loaders, and continues after a loss that is not finite. What is a private class below is one
of these places.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onecycle.checks import as_pair, check_first_batch, check_optimizer
from onecycle.errors import UsageError
from onecycle.outputs import class_scores

SMOOTHING_STEPS = 7
"""Width of the centred mean of the losses; the finder's own average lags behind."""
TOLERATED_RISE = 0.1
"""How far the loss may rise above its minimum at LRMAX, as a share of its whole fall."""
LEAST_FALL = 0.02
"""A loss that falls by less than this share of itself says nothing about the learning rate."""


@dataclass(frozen=True, slots=True)
class LRFinding:
    """What a range test measured, and the learning rates that follow from it."""

    lrs: list[float]
    """The learning rate of each step, rising."""
    losses: list[float]
    """The batch's loss at each step."""
    smoothed: list[float]
    """The centred mean of the losses."""
    lr_max: float
    """LRMAX, the peak of the one cycle."""
    lr_min: float
    """LRMIN, its beginning and end."""
    rule: str
    """How LRMAX and LRMIN follow, in one sentence."""


def find_lr(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module,
    loader: DataLoader,
    *,
    start_lr: float = 1e-5,
    end_lr: float = 0.1,
    num_steps: int = 100,
    ratio: float = 200.0,
    autocast_dtype: torch.dtype = torch.float32,
    on_step: Callable[[int, int], None] | None = None,
) -> LRFinding:
    """Raise the learning rate exponentially until the loss diverges, and suggest LRMAX and LRMIN.

    The test runs on copies: model, optimizer and the global random numbers stay as they are.

    Args:
        model: (N, 3, H, W) -> (N, K), on its device, as it will be trained.
        optimizer: of the model's parameters, without a scheduler.
        criterion: loss to minimise, of (output, labels).
        loader: training batches of any kind; started again when it ends.
        start_lr: learning rate of the first step, above 0.
        end_lr: learning rate of the last step, reached unless the loss diverges before.
        num_steps: number of steps, 20 or more.
        ratio: LRMAX / LRMIN, above 1.
        autocast_dtype: type of the matrix products, as in training.
        on_step: called after each step with the number of steps done and ``num_steps``.

    Returns:
        The curve, and LRMAX and LRMIN by the rule of :func:`suggest_lr`.

    Raises:
        DataError: an image of the first batch is not finite.
        UsageError: the optimizer has a scheduler, or cannot train the model; the first batch is
            none that the network can be trained on; the curve says nothing about the learning rate,
            see :func:`suggest_lr`; or a batch does not fit the GPU's memory.

    Source:
        Smith, "Cyclical Learning Rates for Training Neural Networks" (2015).
    """
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise UsageError(
            "the optimizer already has a scheduler, which sets its learning rate; run find_lr "
            "before the scheduler is made, or with a new optimizer"
        )
    check_optimizer(model, optimizer, criterion)
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype != torch.float32)

    def check(images: Tensor, labels: Tensor) -> None:
        check_first_batch(model, images.to(device), labels.to(device), autocast)

    batches = _Sized(loader, check)
    with _global_randomness_kept(device), _silenced(on_step):
        finder = _finder(*copy.deepcopy((model, optimizer)), criterion, device, autocast_dtype)
        try:
            _sweep(finder, batches, start_lr, end_lr, num_steps)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"the memory of {device} does not hold {batches} in the range test; "
                "lower batch_size, or give lr_max"
            ) from error
    losses = finder.history["loss"]
    return suggest_lr(finder.history["lr"][: len(losses)], losses, ratio=ratio)


def suggest_lr(lrs: Sequence[float], losses: Sequence[float], *, ratio: float = 200.0) -> LRFinding:
    """LRMAX and LRMIN from the curve of a range test.

    LRMAX is the highest learning rate before the smoothed loss has risen by a tenth of its whole
    fall: the end of the plateau, below the learning rates that diverge. LRMIN is LRMAX / ``ratio``.

    Args:
        lrs: learning rates, rising.
        losses: the loss at each of them; the curve ends at the first that is not finite.
        ratio: LRMAX / LRMIN, above 1.

    Returns:
        The curve, and LRMAX and LRMIN.

    Raises:
        UsageError: ``ratio`` is out of range; or the curve has fewer than 20 finite losses, does
            not fall, or does not rise again.
    """
    finite = next((i for i, x in enumerate(losses) if not math.isfinite(x)), len(losses))
    if not 1 < ratio < math.inf:
        raise UsageError(f"ratio is {ratio}; LRMAX / LRMIN must be above 1")
    lrs, losses = [float(x) for x in lrs[:finite]], [float(x) for x in losses[:finite]]
    way_out = "give lr_max, or sweep other learning rates"
    if len(losses) < 20:
        raise UsageError(
            f"the range test has {len(losses)} finite losses; it needs 20 or more: {way_out}"
        )
    smoothed = _centred_mean(losses)
    lowest = int(np.argmin(smoothed))
    fall = max(smoothed[: lowest + 1]) - smoothed[lowest]
    if fall < LEAST_FALL * abs(smoothed[lowest]) or fall == 0:
        raise UsageError(
            f"the loss does not fall between learning rates {lrs[0]:.2g} and {lrs[-1]:.2g}: {way_out}"
        )
    ceiling = smoothed[lowest] + TOLERATED_RISE * fall
    beyond = [i for i in range(lowest, len(smoothed)) if smoothed[i] > ceiling]
    if not beyond:
        raise UsageError(
            f"the loss has not risen again at the highest learning rate, {lrs[-1]:.2g}: {way_out}"
        )
    lr_max = lrs[beyond[0] - 1]
    return LRFinding(
        lrs=lrs,
        losses=losses,
        smoothed=smoothed,
        lr_max=lr_max,
        lr_min=lr_max / ratio,
        rule=(
            f"LRMAX is the highest rate before the loss (mean of {SMOOTHING_STEPS} steps) has "
            f"risen from its minimum by {TOLERATED_RISE:.0%} of its fall; LRMIN is "
            f"LRMAX / {ratio:g}"
        ),
    )


def _centred_mean(losses: list[float]) -> list[float]:
    half = SMOOTHING_STEPS // 2
    return [float(np.mean(losses[max(0, i - half) : i + half + 1])) for i in range(len(losses))]


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
        _FiniteLoss(criterion),
        device=device,
        amp_backend="torch",
        amp_config={
            "device_type": device.type,
            "dtype": dtype,
            "enabled": dtype != torch.float32,
        },
        grad_scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
    )


def _sweep(finder: Any, batches: _Sized, start_lr: float, end_lr: float, num_steps: int) -> None:
    """Raise the learning rate; the curve is in ``finder.history``."""
    with contextlib.suppress(_NotFinite):
        finder.range_test(
            _finder_module().TrainDataLoaderIter(batches),  # it accepts no other loaders
            start_lr=start_lr,
            end_lr=end_lr,
            num_iter=num_steps,
            smooth_f=0,
            non_blocking_transfer=finder.device.type == "cuda",
        )


@contextlib.contextmanager
def _silenced(on_step: Callable[[int, int], None] | None) -> Iterator[None]:
    """Inside the block torch-lr-finder prints nothing and calls ``on_step`` in place of its bar.

    The bar cannot be switched off, and GitHub refuses to show a notebook with its widget.
    """
    stdout = sys.stdout

    def steps(numbers: range) -> Iterator[int]:
        for number in numbers:
            yield number
            if on_step is not None:
                with contextlib.redirect_stdout(stdout):
                    on_step(number + 1, len(numbers))

    with (
        mock.patch.object(_finder_module().lr_finder, "tqdm", steps),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


class _Sized:
    """A loader that knows the size of its batches; the first one is checked."""

    def __init__(self, loader, check: Callable[[Tensor, Tensor], None]) -> None:
        self.loader = loader
        self.check = check
        self.size = None

    def __iter__(self) -> Iterator:
        for batch in self.loader:
            images, labels = as_pair(batch)
            if self.size is None:
                self.check(images, labels)
            self.size = len(labels)
            yield images, labels

    def __str__(self) -> str:
        return "a batch" if self.size is None else f"batches of {self.size}"


class _NotFinite(Exception):
    pass


class _FiniteLoss(nn.Module):
    """Ends the sweep at a loss that is not finite; torch-lr-finder would continue."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
        loss = self.criterion(class_scores(output), labels)
        if not torch.isfinite(loss):
            raise _NotFinite
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
