"""The nearest orthogonal matrix by products alone, which are what a GPU is fast at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MARGIN = 1.01
"""Beyond the largest singular value, for bfloat16's rounding: the quintics are steep there, and the
iteration of a matrix of rank 1 would leave every bound."""


def minimax_quintics(least: float, rounds: int) -> list[tuple[float, float, float]]:
    """Quintics a x + b x^3 + c x^5 that one after the other bring ``least`` .. 1 nearest to 1.

    Of all such polynomials, each has the smallest maximum of |1 - p(x)| where the one before leaves
    its values. It reaches this maximum four times with alternating signs: at both ends and at the
    two extremes between them, which an exchange finds (Remez).

    Args:
        least: the smallest value of the first round, above 0 and below 1.
        rounds: number of quintics, 1 or more.

    Returns:
        (a, b, c) of each round, to four decimals: so they are the same bits everywhere.

    Source:
        Amsel et al., "The Polar Express" (2025), section 3.
    """
    made, low, high = [], least, 1.0
    for _ in range(rounds):
        end = high * MARGIN
        inner = low + (end - low) * np.array([0.25, 0.75])
        for _ in range(50):
            at = np.array([low, *inner, end])
            system = np.stack([at, at**3, at**5, [1, -1, 1, -1]], axis=1)
            a, b, c, error = np.linalg.solve(system, np.ones(4))
            extremes = np.sort(np.roots([5 * c, 3 * b, a]).real)
            inner = np.sqrt(extremes.clip(low**2, end**2))
        made.append((round(float(a), 4), round(float(b), 4), round(float(c), 4)))
        low, high = 1 - error, 1 + error
    return made


QUINTICS = minimax_quintics(6e-3, 4)
"""From the smallest singular values of gradients here, 2e-3 to 2e-2 of the norm, to 0.94..1.06."""


@torch.no_grad()
def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest matrices with all singular values near 1, in bfloat16.

    Singular values of 0.006 times the matrix's norm or more become 0.92..1.08; those of 0.002 about
    0.4.

    Args:
        matrices: (..., m, n), of any scale.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    batch = x.flatten(0, -3) if x.ndim > 2 else x[None]
    for a, b, c in QUINTICS:  # (a + b s + c s s) x, where s is x x^T
        square = batch @ batch.mT
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)  # a x as a term would copy x, which is larger
        batch = factor @ batch
    x = batch.view(x.shape)
    return x.mT if tall else x
