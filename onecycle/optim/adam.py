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
    head_rate: float = 1.0,
    vector_rate: float = 1.0,
    vector_decay: bool = False,
) -> torch.optim.Adam:
    """Adam with decoupled weight decay; biases and batch norm are not decayed unless asked for.

    Args:
        model: on its device already; frozen parameters are left out.
        lr: learning rate of the first step, above 0.
        weight_decay: each step shrinks the weights by the factor 1 - lr * weight_decay, 0 or more.
        betas: decay of the running means of the gradient and of its square, 0..1.
        body_rate: learning rate of all layers but the last as a share of the last one's, for a
            network that is trained already. Their decay per step has the same share.
        head_rate: learning rate of the last layer as a share; its decay per step stays the same.
        vector_rate: learning rate of all other parameters of one dimension, which are biases and
            batch norm's, as a share.
        vector_decay: decay these too.

    Returns:
        The optimizer, fused on cuda.

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2017).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fused = all(p.device.type == "cuda" for _, p in named) or None
    options = {"lr": lr, "betas": betas, "decoupled_weight_decay": True, "fused": fused}
    of_vectors = weight_decay if vector_decay else 0.0
    if body_rate == head_rate == vector_rate == 1:
        return torch.optim.Adam(_groups([p for _, p in named], weight_decay, of_vectors), **options)
    name_of_head = f"{last_layer(model)}."
    body = [p for name, p in named if not name.startswith(name_of_head)]
    head = [p for name, p in named if name.startswith(name_of_head)]
    scales = (body_rate, body_rate * vector_rate, head_rate, head_rate)
    groups = _groups(body, weight_decay, of_vectors) + _groups(head, weight_decay / head_rate, 0.0)
    for group, scale in zip(groups, scales, strict=True):
        group["lr_scale"] = scale
    return ScaledAdam(groups, **options)


def _groups(parameters: list[nn.Parameter], weight_decay: float, of_vectors: float) -> list[dict]:
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": of_vectors},
    ]
