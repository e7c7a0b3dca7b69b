"""Whether a network is as sure as it is right: images in bins of their confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

NUM_BINS = 15
IMAGES_PER_BIN = 20
"""On average, for an accuracy of a bin that says something."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """The images whose predicted class has a probability above ``low`` and up to ``high``."""

    low: float
    high: float
    count: int
    confidence: float | None
    """Their mean probability of the predicted class, 0..1; None without an image."""
    accuracy: float | None
    """The share of them that is right, 0..1; None without an image."""


def calibrate(confidence: np.ndarray, right: np.ndarray) -> tuple[CalibrationBin, ...]:
    """Bins of equal width from 0 to 1.

    Args:
        confidence: (N,) probabilities of the predicted classes, 0..1.
        right: (N,) bool, whether these are the true ones.
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    # A bin holds its upper edge; rounding may have taken a confidence just above 1.
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, NUM_BINS - 1)
    bins = []
    for index, (low, high) in enumerate(pairwise(edges)):
        inside = places == index
        mean = lambda values: float(values[inside].mean()) if inside.any() else None  # noqa: B023
        bins.append(
            CalibrationBin(
                float(low), float(high), int(inside.sum()), mean(confidence), mean(right)
            )
        )
    return tuple(bins)


def coarser(bins: Sequence[CalibrationBin]) -> tuple[CalibrationBin, ...]:
    """Three bins joined to one if there are too few images for so many."""
    if sum(bin_.count for bin_ in bins) >= IMAGES_PER_BIN * len(bins):
        return tuple(bins)
    return tuple(_joined(bins[i : i + 3]) for i in range(0, len(bins), 3))


def _joined(bins: Sequence[CalibrationBin]) -> CalibrationBin:
    filled = [bin_ for bin_ in bins if bin_.count]
    count = sum(bin_.count for bin_ in filled)

    def mean(name: str) -> float | None:
        return sum(b.count * getattr(b, name) for b in filled) / count if count else None

    return CalibrationBin(bins[0].low, bins[-1].high, count, mean("confidence"), mean("accuracy"))
