"""How much of an accuracy, and of the difference of two, can be chance."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the accuracy on all images of this kind lies.

    Args:
        right: images whose predicted class is the true one.
        total: images, 1 or more.
        confidence: how often such an interval holds the true share, between 0 and 1.

    Returns:
        The lower and the upper bound, 0..1.

    Source:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / (1 + z * z / total)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test of two networks on the same images.

    Args:
        only_first: images that the first alone has right.
        only_second: images that the second alone has right.

    Returns:
        The two-sided p-value, 0..1: how often two equally good networks would differ as much.

    Source:
        McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions or
        Percentages" (1947), with the binomial distribution in place of its approximation.
    """
    total, term, ways = only_first + only_second, 1, 0
    for count in range(min(only_first, only_second) + 1):
        ways += term
        term = term * (total - count) // (count + 1)
    return min(1.0, 2 * ways / 2**total)
