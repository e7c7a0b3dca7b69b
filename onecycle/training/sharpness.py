"""Sharpness-aware minimisation: the gradient of a step is that of the worst weights nearby."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sharpness:
    """How far and when weights climb before the gradient of a step is taken.

    Such a step has two passes, so it takes twice the time. In the last epochs alone it does nearly
    as much as in all of them (Zhou et al. 2024).

    Args:
        radius: length of the climb, over all weights together.
        begin: epochs before the first such step.

    Source:
        Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (2021).
    """

    radius: float
    begin: float = 0.0

    def at(self, epochs: float) -> float:
        """The radius of a step after some epochs; 0: its gradient is taken where the weights are."""
        return self.radius if epochs >= self.begin else 0.0


@contextlib.contextmanager
def climbed(model: nn.Module, radius: float, norm: Tensor) -> Iterator[None]:
    """The weights are moved up their gradient inside the block, and are the same bits afterwards.

    So are buffers: the running statistics of batch norm are those of the weights themselves.

    Args:
        model: with gradients.
        radius: length of the move.
        norm: length of the gradient.
    """
    weights = [p for p in model.parameters() if p.grad is not None]
    moved = [*map(torch.Tensor.detach, weights), *model.buffers()]
    before = [tensor.clone() for tensor in moved]
    scale = radius / (norm + 1e-12)  # a gradient that is not finite stays so
    with torch.no_grad():
        torch._foreach_add_(moved[: len(weights)], [p.grad * scale for p in weights])
    try:
        yield
    finally:
        torch._foreach_copy_(moved, before)
