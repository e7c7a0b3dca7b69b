"""The optimizer of the assignment: Adam with decoupled weight decay."""

from __future__ import annotations

import torch
from torch import nn


def get_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Adam:
    """Adam with decoupled weight decay; biases and batch norm are not decayed.

    Args:
        model: on its device already; frozen parameters are left out.
        lr: learning rate of the first step, above 0.
        weight_decay: each step shrinks the weights by the factor 1 - lr * weight_decay, 0 or more.
        betas: decay of the running means of the gradient and of its square, 0..1.

    Returns:
        The optimizer, fused on cuda.

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
