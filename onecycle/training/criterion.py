"""The cross-entropy with weights of classes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy in which an image counts as much as its class is rare.

    It is the plain mean over the batch of each image's weight times its loss. So the shares of
    several processes add up, which those of ``nn.CrossEntropyLoss(weight)`` do not: that divides by
    the weights of its share.

    Args:
        targets: (N,) class indices of the training images.
        num_classes: K. A class without images has the weight 0.
        label_smoothing: share of each target that is spread over all classes, 0..1.

    Attributes:
        weights: (K,) float32, inversely proportional to the images of the class; their mean over
            the training images is 1.
    """

    def __init__(
        self, targets: np.ndarray, num_classes: int, *, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        counts = np.bincount(targets, minlength=num_classes)
        present = np.count_nonzero(counts)
        weights = np.where(counts, len(targets) / (present * np.maximum(counts, 1)), 0.0)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))
        self.label_smoothing = label_smoothing

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
        """The loss of (B, K) outputs and (B,) class indices."""
        losses = F.cross_entropy(
            output, labels, reduction="none", label_smoothing=self.label_smoothing
        )
        return (self.weights[labels] * losses).mean()
