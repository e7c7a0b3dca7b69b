"""The optimizer of the assignment: Adam with decoupled weight decay."""

from __future__ import annotations

import torch
from torch import nn

from onecycle.modules import last_layer


class ScaledAdam(torch.optim.Adam):
    """Adam whose groups have the learning rate ``lr * lr_scale``.

    The scale is in the optimizer, so that schedule, range test and log know one learning rate.
    """

    def step(self, closure=None):
        """Update the parameters; as of ``torch.optim.Adam``."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= group["lr_scale"]
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


def get_optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    body_rate: float = 1.0,
) -> torch.optim.Adam:
    """Adam with decoupled weight decay; biases and batch norm are not decayed.

    Args:
        model: on its device already; frozen parameters are left out.
        lr: learning rate of the first step, above 0.
        weight_decay: each step shrinks the weights by the factor 1 - lr * weight_decay, 0 or more.
        betas: decay of the running means of the gradient and of its square, 0..1.
        body_rate: learning rate of all layers but the last as a share of the last one's, for a
            network that is trained already. Their decay per step has the same share.

    Returns:
        The optimizer, fused on cuda.

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2017).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fused = all(p.device.type == "cuda" for _, p in named) or None
    options = {"lr": lr, "betas": betas, "decoupled_weight_decay": True, "fused": fused}
    if body_rate == 1:
        return torch.optim.Adam(_groups([p for _, p in named], weight_decay), **options)
    head = f"{last_layer(model)}."
    parts = [(body_rate, [p for name, p in named if not name.startswith(head)]),
             (1.0, [p for name, p in named if name.startswith(head)])]  # fmt: skip
    groups = [
        {**group, "lr_scale": scale}
        for scale, parameters in parts
        for group in _groups(parameters, weight_decay)
    ]
    return ScaledAdam(groups, **options)


def _groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict]:
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
