"""Where a network looked: Grad-CAM by hooks, for any layer with a map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onecycle.errors import UsageError
from onecycle.modules import eval_mode
from onecycle.results.evaluation import Evaluation

LAYER = "layer3"
"""CustomResNet's last layer with a map: what the decision is made from, 4x4. ``layer2`` has 8x8, and
less of the decision in it."""
BATCH = 128


def grad_cam(
    model: nn.Module, images: Tensor, class_indices: Sequence[int], layer: str = LAYER
) -> np.ndarray:
    """How much each place speaks for a class, as a layer's maps and their gradients tell.

    The gradient is that of the class's score before the last softmax, where the network ends in
    one. The model, its mode, its gradients and the random numbers stay as they are.

    Args:
        model: (N, C, H, W) to (N, K); it is evaluated in eval mode, where it is.
        images: (N, C, H, W) float, channel-normalised.
        class_indices: (N,) the class that is asked about, for each image, 0..K-1.
        layer: the name of a module whose output is (N, channels, h, w), as in
            ``model.named_modules()``.

    Returns:
        (N, H, W) float32, 0..1: each map has its maximum at 1, or is 0 where nothing speaks for
        the class.

    Raises:
        UsageError: there is no such layer, its output is no map, or a class is out of range.

    Source:
        Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks" (2017).
    """
    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        raise UsageError(f"layer is {layer!r}; it must be {_layer_names(model)}")
    classes = torch.as_tensor(np.asarray(class_indices), dtype=torch.int64)
    if classes.shape != (len(images),):
        raise UsageError(
            f"{tuple(classes.shape)} class indices for {len(images)} images; one an image is needed"
        )
    device = next((p.device for p in model.parameters()), images.device)
    with eval_mode(model):
        maps = [
            _maps(model, modules[layer], part.to(device), of.to(device), layer)
            for part, of in zip(images.split(BATCH), classes.split(BATCH))
            if len(part)
        ]
    return torch.cat(maps).numpy() if maps else np.zeros((0, *images.shape[2:]), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ErrorMaps:
    """Where a network looked in its most confident errors; M is 0 if nothing is wrong."""

    layer: str
    """Whose maps were used."""
    indices: np.ndarray
    """(M,) int64 places of the images among those that were evaluated."""
    predicted: np.ndarray
    """(M, H, W) evidence for the predicted class, 0..1."""
    true: np.ndarray
    """(M, H, W) evidence for the true class, 0..1."""


def explain_errors(
    model: nn.Module,
    transform: Callable[[Tensor, int], Tensor],
    evaluation: Evaluation,
    *,
    count: int = 12,
    layer: str | None = None,
) -> ErrorMaps:
    """Grad-CAM of the most confident errors, for the predicted and for the true class.

    Args:
        model: see :func:`grad_cam`.
        transform: ``transform(indices, epoch)``: (M,) int64 indices to normalised images.
        evaluation: of the model on these images.
        count: how many errors at most.
        layer: see :func:`grad_cam`; None: "layer3" if the network has one, else its last layer with
            a map of more than one place. A network without any gives no maps, for the layer "".
    """
    indices = evaluation.wrong[:count]
    device = next(model.parameters()).device
    images = transform(torch.as_tensor(indices, device=device), 0)
    if layer is None:
        layer = _layer_of(model, images.new_zeros(1, *images.shape[1:]))
    if not layer:
        nothing = np.zeros((0, *images.shape[2:]), np.float32)
        return ErrorMaps("", indices[:0], nothing, nothing)
    return ErrorMaps(
        layer=layer,
        indices=indices,
        predicted=grad_cam(model, images, evaluation.predicted[indices], layer),
        true=grad_cam(model, images, evaluation.labels[indices], layer),
    )


@torch.no_grad()
def _layer_of(model: nn.Module, image: Tensor) -> str:
    """The name of the layer to look at by default."""
    found: list[str] = []

    def note(name: str) -> Callable:
        def hook(module, inputs, output) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(note(name))
             for name, module in model.named_modules() if name]  # fmt: skip
    try:
        with eval_mode(model):
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return LAYER if LAYER in found else found[-1] if found else ""


def _maps(
    model: nn.Module, module: nn.Module, images: Tensor, classes: Tensor, layer: str
) -> Tensor:
    seen: dict[str, Tensor] = {}
    softmax: dict[str, Tensor] = {}

    def keep(_, __, output):
        seen["maps"] = output
        # What follows may work in place, which would change what is kept.
        return output.clone() if isinstance(output, Tensor) else output

    def keep_scores(_, inputs, output):
        softmax["scores"], softmax["output"] = inputs[0], output

    hooks = [module.register_forward_hook(keep)]
    hooks += [
        other.register_forward_hook(keep_scores)
        for other in model.modules()
        if isinstance(other, (nn.LogSoftmax, nn.Softmax)) and other is not module
    ]
    cuda = [images.device] if images.device.type == "cuda" else []
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=cuda),
        ):
            # With an input that needs a gradient, a frozen network gives one as well.
            output = model(images.detach().clone().requires_grad_())
            # A probability near 1 has next to no gradient; the score before the softmax has.
            scores = softmax["scores"] if softmax.get("output") is output else output
            activation = seen.get("maps")
            if not isinstance(activation, Tensor) or activation.ndim != 4:
                shape = tuple(activation.shape) if isinstance(activation, Tensor) else "no tensor"
                raise UsageError(
                    f"layer {layer!r} gives {shape}; Grad-CAM needs (N, channels, h, w): "
                    f"{_layer_names(model)}"
                )
            if not bool(((classes >= 0) & (classes < scores.shape[1])).all()):
                raise UsageError(
                    f"class indices are {int(classes.min())}..{int(classes.max())}; "
                    f"they must be 0..{scores.shape[1] - 1}"
                )
            chosen = scores.gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, activation)
    finally:
        for hook in hooks:
            hook.remove()
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    heat = (weights * activation.detach().float()).sum(dim=1, keepdim=True).relu()
    heat = F.interpolate(heat, size=images.shape[2:], mode="bilinear", align_corners=False)
    peak = heat.amax(dim=(2, 3), keepdim=True)
    return (heat / torch.where(peak > 0, peak, 1)).squeeze(1).clamp(0, 1).cpu()


def _layer_names(model: nn.Module) -> str:
    names = [name for name, _ in model.named_children()]
    inner = next((name for name, _ in model.named_modules() if "." in name), None)
    below = f", or a module inside one, as {inner}" if inner else ""
    return f"one of {', '.join(names)}{below}"
