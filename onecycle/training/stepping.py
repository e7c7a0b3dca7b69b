"""When a scheduler is stepped, after each batch or each epoch, and whether it is meant for that."""

from __future__ import annotations

import math
import sys
from typing import Any

from torch.optim import lr_scheduler

from onecycle.errors import UsageError

WORDS = ("batch", "epoch")
LARGEST_FALL = 1000
"""By how much a schedule may lower the learning rate in the first epoch. One that is meant per
epoch lowers it further if it is stepped after each batch."""


def is_per_epoch(scheduler: Any, step_scheduler: str) -> bool:
    """Whether a scheduler is stepped after each epoch; one that watches the loss always is.

    Raises:
        UsageError: ``step_scheduler`` is neither "batch" nor "epoch".
    """
    if step_scheduler not in WORDS:
        raise UsageError(f"step_scheduler is {step_scheduler!r}; it must be {' or '.join(WORDS)}")
    return step_scheduler == "epoch" or isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)


def replace_infinity(scheduler: Any) -> None:
    """Give ReduceLROnPlateau finite numbers in place of infinity, which no checkpoint takes.

    It begins with an infinite loss as the best one.
    """
    for name in ("best", "mode_worse"):
        value = getattr(scheduler, name, 0)
        if isinstance(value, float) and math.isinf(value):
            setattr(scheduler, name, math.copysign(sys.float_info.max, value))


def check_scheduler(
    scheduler: Any, *, per_epoch: bool, evaluated: bool, epochs: int, num_steps: int
) -> None:
    """Refuse a scheduler that does not fit the training.

    Args:
        scheduler: of torch, or anything with ``step()``; None: a constant learning rate.
        per_epoch: stepped after each epoch, not after each batch.
        evaluated: there are test images.
        epochs: of the training.
        num_steps: batches per epoch.

    Raises:
        UsageError: it has another number of steps, it is meant for the other way of stepping, or it
            needs the loss of test images and there are none.
    """
    steps = epochs if per_epoch else epochs * num_steps
    total = getattr(scheduler, "total_steps", steps)
    if not num_steps or total != steps:
        found = f"{epochs} epochs of {num_steps} batches are {epochs * num_steps} steps"
        raise UsageError(
            f"{found}{f', {steps} of the schedule' if per_epoch else ''}, and the schedule has "
            f"{total}; make both the same, with one batch or more per epoch"
        )
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) and not evaluated:
        raise UsageError(
            "ReduceLROnPlateau needs the loss of test images, and test_loader is None; give images "
            "to evaluate on, or another scheduler"
        )
    if not per_epoch and _is_meant_per_epoch(scheduler, epochs, num_steps):
        raise UsageError(
            f"{type(scheduler).__name__} is stepped after each of {num_steps} batches per epoch "
            'and seems to be meant per epoch; give step_scheduler="epoch", or count its steps in '
            "batches"
        )


def _is_meant_per_epoch(scheduler: Any, epochs: int, num_steps: int) -> bool:
    kind = lr_scheduler
    if isinstance(scheduler, (kind.CosineAnnealingLR, kind.PolynomialLR)):
        length = getattr(scheduler, "T_max", getattr(scheduler, "total_iters", None))
        return length == epochs and num_steps > 1
    power = 0
    if isinstance(scheduler, kind.StepLR):
        power = num_steps // scheduler.step_size
    elif isinstance(scheduler, kind.MultiStepLR):
        power = sum(times for step, times in scheduler.milestones.items() if step <= num_steps)
    elif isinstance(scheduler, kind.ExponentialLR):
        power = num_steps
    return power > 0 and scheduler.gamma**power < 1 / LARGEST_FALL


def check_begin(scheduler: Any, done: int, total: int) -> None:
    """Refuse a scheduler that another training has moved.

    Args:
        scheduler: after a checkpoint was restored, if there is one.
        done: batches or epochs of this training after which it was stepped.
        total: of the whole training; no step of the scheduler follows the last.

    Raises:
        UsageError: it is not where the training is.
    """
    found = getattr(scheduler, "last_epoch", done)
    if isinstance(scheduler, lr_scheduler.LRScheduler) and found not in (
        done,
        done - (done == total),
    ):
        raise UsageError(
            f"the scheduler was stepped {found} times before, and this training has done {done} of "
            f"{total} steps of it; make a new optimizer and a new scheduler for each fit"
        )
