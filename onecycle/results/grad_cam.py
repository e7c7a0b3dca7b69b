"""Where a network looked: Grad-CAM by hooks, for any layer with a map."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onecycle.errors import UsageError
from onecycle.modules import eval_mode
from onecycle.outputs import class_scores
from onecycle.results.evaluation import Evaluation

BATCH = 128
NO_LAYER = "no layer has a map from which the classes follow (a transformer's tokens are none)"


def grad_cam(
    model: nn.Module, images: Tensor, class_indices: Sequence[int], layer: str | None = None
) -> np.ndarray:
    """How much each place speaks for a class, as a layer's maps and their gradients tell.

    The gradient is that of the class's score before the last softmax, where the network ends in
    one. The model, its mode, its gradients and the random numbers stay as they are.

    Args:
        model: (N, C, H, W) to (N, K), or to something with such ``logits``; it is evaluated in eval
            mode, where it is.
        images: (N, C, H, W) float, channel-normalised.
        class_indices: (N,) the class that is asked about, for each image, 0..K-1.
        layer: the name of a module whose output is (N, channels, h, w), as in
            ``model.named_modules()``. None: the one that :func:`choose_layer` gives.

    Returns:
        (N, H, W) float32, 0..1: each map has its maximum at 1, or is 0 where nothing speaks for
        the class.

    Raises:
        UsageError: there is no such layer, its output is no map, the scores do not depend on it,
            or a class is out of range.

    Source:
        Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks" (2017).
    """
    modules = dict(model.named_modules())
    if layer is None:
        layer = choose_layer(model, images)
        if not layer:
            raise UsageError(f"{NO_LAYER}; Grad-CAM needs one")
    if not layer or layer not in modules:
        raise UsageError(f"layer is {layer!r}; it must be {_layer_names(model)}")
    classes = torch.as_tensor(np.asarray(class_indices), dtype=torch.int64)
    if classes.shape != (len(images),):
        raise UsageError(
            f"{tuple(classes.shape)} class indices for {len(images)} images; one per image is needed"
        )
    device = next((p.device for p in model.parameters()), images.device)
    with eval_mode(model):
        maps = [
            _maps(model, modules[layer], part.to(device), of.to(device), layer)
            for part, of in zip(images.split(BATCH), classes.split(BATCH))
            if len(part)
        ]
    return torch.cat(maps).numpy() if maps else np.zeros((0, *images.shape[2:]), np.float32)


def choose_layer(model: nn.Module, images: Tensor) -> str:
    """The layer whose maps Grad-CAM uses if none is named.

    Args:
        model: see :func:`grad_cam`; it stays as it is.
        images: (N, C, H, W) float; only their size counts, and N may be 0.

    Returns:
        The module that is the last to give a map, (N, channels, h, w) with h and w above 1, on
        which the scores depend, and is no pooling: ``layer3`` in ``CustomResNet``. ``""`` if no
        module gives one, or if layers that work on tokens, (N, tokens, channels), follow it.
    """
    used = _layers_with_maps(model, images)
    return used[-1] if used else ""


def _layers_with_maps(model: nn.Module, images: Tensor) -> list[str]:
    """The names of those that :func:`choose_layer` chooses from."""
    maps: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        maps.pop(name, None)  # a module may be called again: its last output counts
        is_pooling = type(modules[name]).__module__ == nn.MaxPool2d.__module__
        if is_pooling or not output.requires_grad:
            return  # what is before a pooling shows the places more exactly
        if output.ndim == 4 and min(output.shape[2:]) > 1:
            maps[name] = output
        elif output.ndim == 3 and any(True for _ in modules[name].parameters()):
            maps.clear()  # tokens: what follows mixes the places

    device = next((p.device for p in model.parameters()), images.device)
    image = torch.zeros((1, *images.shape[1:]), dtype=images.dtype, device=device)
    modules = {name: module for name, module in model.named_modules() if name}
    with eval_mode(model), _watched(modules, keep), _gradients(device):
        scores = class_scores(model(image.requires_grad_()))
        if not maps or not scores.requires_grad:
            return []
        gradients = torch.autograd.grad(scores.sum(), list(maps.values()), allow_unused=True)
    return [name for name, gradient in zip(maps, gradients) if gradient is not None]


@dataclass(frozen=True, slots=True, eq=False)
class ErrorMaps:
    """Where a network looked in its most confident errors; M is 0 if nothing is wrong.

    A network without a layer with a map has none either.
    """

    layer: str
    """Whose maps were used; empty if no layer has one."""
    indices: np.ndarray
    """(M,) int64 places of the images among those that were evaluated."""
    predicted: np.ndarray
    """(M, H, W) evidence for the predicted class, 0..1."""
    true: np.ndarray
    """(M, H, W) evidence for the true class, 0..1."""

    @classmethod
    def none(cls, size_px: int) -> ErrorMaps:
        """Those of a network that has no layer with a map, for images of a size."""
        nothing = np.zeros((0, size_px, size_px), np.float32)
        return cls("", np.zeros(0, np.int64), nothing, nothing)


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
        layer: see :func:`grad_cam`.

    Returns:
        The maps; none if no layer is named and the network has none with a map.

    Raises:
        UsageError: the layer that is named is missing or gives no map.
    """
    indices = evaluation.wrong[:count]
    device = next(model.parameters()).device
    images = transform(torch.as_tensor(indices, device=device), 0)
    if layer is None:
        layer = choose_layer(model, images)
        if not layer:
            return ErrorMaps.none(images.shape[2])
    return ErrorMaps(
        layer=layer,
        indices=indices,
        predicted=grad_cam(model, images, evaluation.predicted[indices], layer),
        true=grad_cam(model, images, evaluation.labels[indices], layer),
    )


def _maps(
    model: nn.Module, module: nn.Module, images: Tensor, classes: Tensor, layer: str
) -> Tensor:
    seen: dict[str, Tensor] = {}
    softmax: dict[str, Tensor] = {}

    def keep_scores(_, inputs, output):
        softmax["scores"], softmax["output"] = inputs[0], output

    hooks = [
        other.register_forward_hook(keep_scores)
        for other in model.modules()
        if isinstance(other, (nn.LogSoftmax, nn.Softmax)) and other is not module
    ]
    try:
        with _watched({layer: module}, seen.__setitem__), _gradients(images.device):
            # With an input that needs a gradient, a frozen network gives one as well.
            output = class_scores(model(images.detach().clone().requires_grad_()))
            # A probability near 1 has next to no gradient; the score before the softmax has.
            scores = softmax["scores"] if softmax.get("output") is output else output
            activation = _checked_map(seen.get(layer), layer, model, images)
            if not bool(((classes >= 0) & (classes < scores.shape[1])).all()):
                raise UsageError(
                    f"class indices are {int(classes.min())}..{int(classes.max())}; "
                    f"they must be 0..{scores.shape[1] - 1}"
                )
            chosen = scores.gather(1, classes[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, activation, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    if gradient is None:
        raise UsageError(f"the scores of the classes do not depend on layer {layer!r}")
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    heat = (weights * activation.detach().float()).sum(dim=1, keepdim=True).relu()
    heat = F.interpolate(heat, size=images.shape[2:], mode="bilinear", align_corners=False)
    peak = heat.amax(dim=(2, 3), keepdim=True)
    return (heat / torch.where(peak > 0, peak, 1)).squeeze(1).clamp(0, 1).cpu()


@contextlib.contextmanager
def _watched(modules: dict[str, nn.Module], keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside the block, each tensor that a module gives is kept under the module's name."""

    def hook_of(name: str):
        def hook(_, __, output):
            if not isinstance(output, Tensor):
                return output
            keep(name, output)
            return output.clone()  # what follows may work in place, which would change what is kept

        return hook

    hooks = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _gradients(device: torch.device) -> Iterator[None]:
    """Gradients are computed inside the block, and the random numbers stay as they are."""
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=cuda),
    ):
        yield


def _checked_map(output: Tensor | None, layer: str, model: nn.Module, images: Tensor) -> Tensor:
    if output is None or output.ndim != 4:
        shape = "no tensor" if output is None else tuple(output.shape)
        names = _layers_with_maps(model, images)
        instead = f"the last such layers are {', '.join(names[-3:])}" if names else NO_LAYER
        raise UsageError(
            f"layer {layer!r} gives {shape}; Grad-CAM needs (N, channels, h, w): {instead}"
        )
    if not output.requires_grad:
        raise UsageError(f"the scores of the classes do not depend on layer {layer!r}")
    return output


def _layer_names(model: nn.Module) -> str:
    names = [name for name, _ in model.named_children()]
    inner = next((name for name, _ in model.named_modules() if "." in name), None)
    below = f", or a module inside one, as {inner}" if inner else ""
    return f"one of {', '.join(names)}{below}"
