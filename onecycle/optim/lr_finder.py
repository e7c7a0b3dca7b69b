"""The range test: LRMAX and LRMIN from a sweep of the learning rate.

The sweep is torch-lr-finder's, which is bent in four places: its bar cannot be switched off and
writes a widget that repository pages refuse, it prints, it does not stop at a loss that is not finite,
and it refuses loaders that are not torch's.
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
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onecycle.errors import UsageError

SMOOTHING_STEPS = 7
"""Width of the centred mean over the losses; the finder's own average lags behind the rates."""
TOLERATED_RISE = 0.1
"""How far the loss may rise above its minimum at LRMAX, as a share of its whole fall."""
LEAST_FALL = 0.02
"""A loss that falls by less than this share of itself says nothing about the rate."""


@dataclass(frozen=True, slots=True)
class LRFinding:
    """What a range test measured, and the rates that follow from it."""

    lrs: list[float]
    """The rate of each step, rising."""
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
    """Raise the rate step by step, exponentially, until the loss diverges; suggest LRMAX and LRMIN.

    The test runs on copies: model, optimizer and the global random numbers stay as they are.

    Args:
        model: on its device, as it will be trained.
        optimizer: of the model's parameters.
        criterion: loss to minimise, of (output, labels).
        loader: training batches of any kind, begun anew where they end.
        start_lr: first rate.
        end_lr: last rate, reached where the loss does not diverge before.
        num_steps: steps from one to the other.
        ratio: LRMAX / LRMIN.
        autocast_dtype: of the matrix products, as in training.
        on_step: called with the steps done and their number.

    Raises:
        UsageError: the curve says nothing about the rate, see :func:`suggest_lr`; or the GPU's
            memory does not hold a batch.

    Source:
        Smith, "Cyclical Learning Rates for Training Neural Networks" (2015); the sweep is
        torch-lr-finder's.
    """
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise UsageError(
            "the optimizer has a scheduler already; find the learning rate before you make one"
        )
    device = next(model.parameters()).device
    batches = _Sized(loader)
    with _global_randomness_kept(device):
        model, optimizer = copy.deepcopy((model, optimizer))
        try:
            lrs, losses = _sweep(
                model, optimizer, _FiniteLoss(criterion), batches, (start_lr, end_lr, num_steps),
                autocast_dtype, on_step,
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"the memory of {device} does not hold {batches} in the range test; "
                "lower batch_size, or give lr_max"
            ) from error
    return suggest_lr(lrs[: len(losses)], losses, ratio=ratio)


def _sweep(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module,
    batches: _Sized,
    rates: tuple[float, float, int],
    dtype: torch.dtype,
    on_step: Callable[[int, int], None] | None,
) -> tuple[list[float], list[float]]:
    """The learning rates and losses of torch-lr-finder's sweep, which changes model and optimizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its tqdm warns in notebooks
        import torch_lr_finder  # here, so that training at a given rate does without it

    device, stdout = next(model.parameters()).device, sys.stdout
    start_lr, end_lr, num_steps = rates

    def steps(numbers: range) -> Iterator[int]:
        for number in numbers:
            yield number
            if on_step is not None:
                with contextlib.redirect_stdout(stdout):
                    on_step(number + 1, len(numbers))

    with (
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(torch_lr_finder.lr_finder, "tqdm", steps),
        contextlib.suppress(_NotFinite),
    ):
        kind = device.type
        amp = {"device_type": kind, "dtype": dtype, "enabled": dtype != torch.float32}
        finder = torch_lr_finder.LRFinder(
            model, optimizer, criterion, device=device, amp_backend="torch", amp_config=amp,
            grad_scaler=torch.amp.GradScaler(kind, enabled=dtype == torch.float16),
        )  # fmt: skip
        finder.range_test(
            torch_lr_finder.TrainDataLoaderIter(batches), start_lr=start_lr, end_lr=end_lr,
            num_iter=num_steps, smooth_f=0, non_blocking_transfer=kind == "cuda",
        )  # fmt: skip
    return finder.history["lr"], finder.history["loss"]


def suggest_lr(lrs: Sequence[float], losses: Sequence[float], *, ratio: float = 200.0) -> LRFinding:
    """LRMAX and LRMIN from the curve of a range test.

    LRMAX is the highest rate before the smoothed loss has risen by a tenth of its whole fall: the
    end of the plateau, below the rates that diverge. LRMIN is LRMAX / ``ratio``.

    Args:
        lrs: rising rates.
        losses: the loss at each of them; the curve ends at the first that is not finite.
        ratio: LRMAX / LRMIN, above 1.

    Raises:
        UsageError: ``ratio`` is out of range; fewer than 20 finite losses, a loss that does not
            fall, or one that still falls at the last rate.
    """
    finite = next((i for i, x in enumerate(losses) if not math.isfinite(x)), len(losses))
    if not 1 < ratio < math.inf:
        raise UsageError(f"ratio is {ratio}; LRMAX / LRMIN must be above 1")
    lrs, losses = [float(x) for x in lrs[:finite]], [float(x) for x in losses[:finite]]
    way_out = "give lr_max, or sweep other rates"
    if len(losses) < 20:
        raise UsageError(
            f"the range test has {len(losses)} finite losses; it needs 20 or more: {way_out}"
        )
    smoothed = _centred_mean(losses)
    lowest = int(np.argmin(smoothed))
    fall = max(smoothed[: lowest + 1]) - smoothed[lowest]
    if fall < LEAST_FALL * abs(smoothed[lowest]) or fall == 0:
        raise UsageError(
            f"the loss does not fall between the rates {lrs[0]:.2g} and {lrs[-1]:.2g}: {way_out}"
        )
    ceiling = smoothed[lowest] + TOLERATED_RISE * fall
    beyond = [i for i in range(lowest, len(smoothed)) if smoothed[i] > ceiling]
    if not beyond:
        raise UsageError(
            f"the loss has not risen again at the highest rate, {lrs[-1]:.2g}: {way_out}"
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


class _Sized:
    """A loader that tells how large its batches are."""

    def __init__(self, loader) -> None:
        self.loader = loader
        self.size = None

    def __iter__(self) -> Iterator:
        for images, labels in self.loader:
            self.size = len(labels)
            yield images, labels

    def __str__(self) -> str:
        return "a batch" if self.size is None else f"batches of {self.size}"


class _NotFinite(Exception):
    pass


class _FiniteLoss(nn.Module):
    """Ends the sweep at a loss that is not finite, after which torch-lr-finder would go on."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
        loss = self.criterion(output, labels)
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
