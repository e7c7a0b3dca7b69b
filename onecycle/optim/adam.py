"""The optimizer of the assignment: Adam, with a decay that is apart from the gradient."""

from __future__ import annotations

import torch
from torch import nn


def get_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Adam:
    """Adam with decoupled decay of the weights; biases and BN are not decayed.

    Args:
        model: on its device already.
        lr: rate of the first step, above 0.
        weight_decay: a step takes rate * decay of each weight.
        betas: decay of the gradient's mean and of its square, 0..1.

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2017).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type == "cuda" for parameter in parameters)
    return torch.optim.Adam(
        groups, lr=lr, betas=betas, decoupled_weight_decay=True, fused=fused or None
    )
