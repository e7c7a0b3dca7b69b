"""The rule of the range test: LRMAX and LRMIN from a curve, with a measure of how sure they are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onecycle.errors import RangeTestError, UsageError

LEAST_STEPS, LEAST_FINITE = 20, 10
"""Of a curve; the losses of the other steps may be beyond its divergence."""
WIDTH = 0.2
"""Standard deviation of the Gaussian weights that smooth the losses, in decades of the rate."""
VALLEY = 0.6
"""The valley is where the smoothed loss is above its minimum by less than this share of its fall."""
PEAK_OVER_CENTRE = 3.5
"""LRMAX over the centre of the valley, the same for all data.

Eight sweeps of CIFAR-10 at full size (benchmarks/results/sweeps.json) have their centre at 0.00075,
which makes LRMAX 0.0026. Of 0.0016 and 0.0032, held-out images favour 0.0032
(benchmarks/results/gpu/factorial.json); Gugger and Howard, "AdamW and Super-convergence is now the fastest way to train neural nets" (2018), took 0.003 for Adam
with one cycle on CIFAR-10.
"""
BEGINNING = 0.2
"""LRMIN is the last rate at which the loss has not yet fallen by this share of its whole fall."""
LEAST_RATIO, GREATEST_RATIO = 20.0, 1000.0
"""Bounds of a found LRMAX / LRMIN, at which the accuracy was the same within 0.1 points, with one seed
each (benchmarks/results/decay_proxy.json)."""
LEAST_FALL = 0.02
"""A loss that falls by less than this share of itself says nothing about the learning rate."""
LEAST_SIGNAL = 5.0
"""Nor does one whose fall is less than this many of its standard errors."""
MOST_UNSURE = 0.35
"""Greatest standard error of log LRMAX: two of them are a factor of 2."""
RESAMPLES = 200
"""Curves with other noise, from which the standard errors come."""


@dataclass(frozen=True, slots=True)
class LRFinding:
    """What a range test measured, and the learning rates that follow from it."""

    lrs: list[float]
    """The learning rate of each step, rising."""
    losses: list[float]
    """The batch's loss at each step; the mean over the sweeps if there are several."""
    smoothed: list[float]
    """The losses, averaged with Gaussian weights over near rates."""
    lr_max: float | None
    """LRMAX, the peak of the one cycle; None where the curve says nothing."""
    lr_min: float | None
    """LRMIN, its beginning and end; None where the curve says nothing."""
    rule: str
    """How LRMAX and LRMIN follow, in one sentence."""


def suggest_lr(
    lrs: Sequence[float],
    losses: Sequence[float] | Sequence[Sequence[float]],
    *,
    ratio: float | None = None,
    way_out: str = "give lr_max",
) -> LRFinding:
    """LRMAX and LRMIN from the curve of a range test.

    The losses are smoothed. The valley is where the smoothed loss is within 60 % of its whole fall
    above its minimum; its centre is the mean of the log rates, each with the depth of the valley as
    its weight. Unlike the minimum, which may be anywhere on the flat ground of a valley, the centre
    depends on all losses of both slopes. LRMAX is 3.5 times the centre, or where the valley ends if
    that is less. LRMIN is the last rate at which the loss has not yet fallen by 20 % of its fall, but
    at least LRMAX / 1000 and at most LRMAX / 20; or LRMAX / ``ratio``.

    Losses that scatter about the smoothed curve make the centre unsure by an amount that follows
    from the curve itself: its signs of scatter are drawn anew 200 times (wild bootstrap).

    Args:
        lrs: learning rates, rising, 20 or more.
        losses: (steps,) the loss at each of them, or (sweeps, steps), whose mean is used. A loss that
            is not finite is where the training diverged; what follows does not count.
        ratio: LRMAX / LRMIN, above 1; None: LRMIN is found.
        way_out: what the errors tell the reader to do.

    Returns:
        The curve, and LRMAX and LRMIN.

    Raises:
        RangeTestError: the curve does not fall, falls by no more than its noise, does not rise
            again, or leaves LRMAX unsure by more than a factor of 1.4. It carries the curve.
        UsageError: ``ratio`` is out of range.

    Source:
        Gaussian weights: Nadaraya, "On Estimating Regression" (1964). Wild bootstrap: Wu, "Jackknife,
        Bootstrap and Other Resampling Methods in Regression Analysis" (1986).
    """
    if ratio is not None and not 1 < ratio < math.inf:
        raise UsageError(f"ratio is {ratio}; LRMAX / LRMIN must be above 1")
    sweeps = np.atleast_2d(np.asarray(losses, dtype=float))
    mean, rates = sweeps.mean(0), np.asarray(lrs, dtype=float)
    finite = len(mean) if np.isfinite(mean).all() else int(np.argmin(np.isfinite(mean)))
    known = mean[:finite].tolist()
    finding = LRFinding(rates[:finite].tolist(), known, known, None, None, "")

    def refuse(why: str) -> RangeTestError:
        return RangeTestError(f"{why}: {way_out}", dataclasses.replace(finding, rule=why))

    if finite < LEAST_FINITE or len(mean) < LEAST_STEPS:
        raise refuse(
            f"the range test has {finite} finite losses in {len(mean)} steps; it needs "
            f"{LEAST_FINITE} in {LEAST_STEPS}"
        )
    curve = _Curve(np.log10(rates), known)
    finding = dataclasses.replace(finding, smoothed=curve.smoothed[:finite].tolist())
    valley = curve.valley(curve.losses)
    if why := _doubt(curve, valley, finding.lrs):
        raise refuse(why)
    lr_max = float(PEAK_OVER_CENTRE * 10**valley.centre)
    beyond = lr_max > 10**valley.end
    lr_max = min(lr_max, float(10**valley.end))
    of = f"mean loss of {len(sweeps)} sweeps" if len(sweeps) > 1 else "loss"
    rule = f"LRMAX is {PEAK_OVER_CENTRE:g} times the rate at the centre of the valley of the {of}"
    rule += ", but at most that at its end; " if beyond else "; "
    if ratio is not None:
        return dataclasses.replace(
            finding, lr_max=lr_max, lr_min=lr_max / ratio, rule=f"{rule}LRMIN is LRMAX / {ratio:g}"
        )
    found = lr_max / float(10**valley.beginning)
    ratio = min(max(found, LEAST_RATIO), GREATEST_RATIO)
    rule += f"LRMIN is the last rate before the loss has fallen by {BEGINNING:.0%} of its fall"
    if ratio != found:
        rule += f", but {'at most' if found < ratio else 'at least'} LRMAX / {ratio:g}"
    return dataclasses.replace(finding, lr_max=lr_max, lr_min=lr_max / ratio, rule=rule)


def _doubt(curve: _Curve, valley: _Valley, lrs: Sequence[float]) -> str:
    """Why a curve says nothing about the learning rate, or an empty text."""
    swept = f"between learning rates {lrs[0]:.2g} and {lrs[-1]:.2g}"
    if not valley.fall > LEAST_FALL * abs(curve.start - valley.fall):
        return f"the loss does not fall {swept}"
    others = [curve.valley(losses) for losses in curve.resampled()]
    if valley.fall < LEAST_SIGNAL * np.std([other.fall for other in others]):
        return f"the loss falls by no more than its noise {swept}"
    if not valley.is_closed:
        return f"the loss has not risen again at the highest learning rate, {lrs[-1]:.2g}"
    unsure = math.log(10) * np.std([other.centre for other in others])
    if unsure > MOST_UNSURE:
        return (
            f"the losses scatter so much that LRMAX is unsure by a factor of {math.exp(unsure):.1f}"
        )
    return ""


@dataclass(frozen=True, slots=True)
class _Valley:
    centre: float
    """Decimal logarithm of a rate, as the next two."""
    beginning: float
    """Of the fall, not of the valley."""
    end: float
    fall: float
    is_closed: bool
    """The loss has risen again at the last rate."""


class _Curve:
    """The losses of all steps, and how they are smoothed."""

    def __init__(self, rates: np.ndarray, known: Sequence[float]) -> None:
        self.rates = rates  # decimal logarithms
        self.grid = np.linspace(rates[0], rates[-1], 301)
        self.num_first = max(3, len(rates) // 6)
        self.start = np.mean(known[: self.num_first])
        # What is far above the start is divergence, however far: it must not reach over the valley.
        ceiling = 2 * self.start - min(known)
        self.losses = np.full(len(rates), ceiling)
        self.losses[: len(known)] = np.minimum(known, ceiling)
        self.to_rates, self.to_grid = (self._weights(at) for at in (rates, self.grid))
        self.smoothed = self.to_rates @ self.losses

    def _weights(self, at: np.ndarray) -> np.ndarray:
        weights = np.exp(-0.5 * ((at[:, None] - self.rates) / WIDTH) ** 2)
        return weights / weights.sum(1, keepdims=True)

    def valley(self, losses: np.ndarray) -> _Valley:
        smooth, start = self.to_grid @ losses, losses[: self.num_first].mean()
        lowest = int(np.argmin(smooth))
        fall = start - smooth[lowest]
        if self.grid[lowest] <= self.rates[self.num_first - 1]:
            fall = 0.0  # it only rises
        depth = smooth[lowest] + VALLEY * fall - smooth
        right = np.flatnonzero(depth[lowest:] < 0)
        weights = np.maximum(depth, 0)  # of both parts where a loss by chance divides the valley
        centre = np.average(self.grid, weights=weights) if weights.any() else self.grid[lowest]
        before = np.flatnonzero(smooth[:lowest] > start - BEGINNING * fall)
        beginning = self.grid[before[-1] if len(before) else 0]
        end = self.grid[lowest + right[0] if len(right) else -1]
        return _Valley(float(centre), float(beginning), float(end), float(fall), bool(len(right)))

    def resampled(self) -> np.ndarray:
        """(200, steps) curves whose scatter has other signs, the same each time."""
        own = np.minimum(np.diag(self.to_rates), 0.9)  # the share of each loss in its own smoothing
        scatter = (self.losses - self.smoothed) / np.sqrt(1 - own)
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (RESAMPLES, len(scatter)))
        return self.smoothed + signs * scatter
