"""The one-cycle schedule."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import OneCycleLR

from onecycle.errors import UsageError


def one_cycle(
    optimizer: torch.optim.Optimizer,
    *,
    lr_max: float,
    lr_min: float,
    total_steps: int,
    peak_step: int,
    momentum: tuple[float, float] | None = None,
) -> OneCycleLR:
    """A linear increase from LRMIN to LRMAX and a linear decrease back to LRMIN at the last step.

    There is no annihilation phase: the learning rate never falls below LRMIN.

    Args:
        optimizer: its learning rate is set to ``lr_min`` at once.
        lr_max: LRMAX, the peak, above ``lr_min``.
        lr_min: LRMIN, the first and last learning rate, above 0.
        total_steps: optimizer steps of the whole training, N, 3 or more.
        peak_step: steps of the increase: step ``peak_step - 1`` (from 0) has LRMAX. Clipped to
            2..N-1.
        momentum: Adam's beta1 at LRMIN and at LRMAX, cycled against the learning rate; None: not
            cycled.

    Returns:
        The scheduler, to be stepped after every optimizer step but the last.

    Raises:
        UsageError: a learning rate or the number of steps is out of range.

    Source:
        Smith and Topin, "Super-Convergence" (2017).
    """
    if not 0 < lr_min < lr_max < math.inf:
        raise UsageError(f"lr_min is {lr_min} and lr_max {lr_max}; 0 < lr_min < lr_max is needed")
    if total_steps < 3:
        raise UsageError(
            f"one cycle needs 3 steps or more, and there are {total_steps}; "
            "raise epochs or lower batch_size"
        )
    peak_step = min(max(peak_step, 2), total_steps - 1)
    at_lr_min, at_lr_max = momentum or (0.0, 0.0)
    return OneCycleLR(
        optimizer,
        max_lr=lr_max,
        total_steps=total_steps,
        pct_start=peak_step / total_steps,
        anneal_strategy="linear",
        cycle_momentum=momentum is not None,  # otherwise it would drive Adam's beta1
        max_momentum=at_lr_min,
        base_momentum=at_lr_max,
        div_factor=lr_max / lr_min,
        final_div_factor=1.0,
    )
