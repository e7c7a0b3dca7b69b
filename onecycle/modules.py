"""Helpers for any network."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onecycle.errors import RunError, UsageError


def class_scores(output: Any) -> Tensor:
    """The classes' scores out of what a network gives.

    Args:
        output: the scores; or a dictionary or an object with ``logits``, such as those of
            transformers, or of torchvision's GoogLeNet in training.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(output, Tensor):
        return output
    is_mapping = isinstance(output, Mapping)
    scores = output.get("logits") if is_mapping else getattr(output, "logits", None)
    if isinstance(scores, Tensor):
        return scores
    found = f"a {type(output).__name__}"
    if is_mapping:
        found = f"a dictionary of {', '.join(map(str, output))}"
    elif isinstance(output, (tuple, list)):
        found += f" of {len(output)}"
    raise UsageError(
        f"the network gives {found}; expected a tensor of (N, K) logits or log-probabilities, or "
        "something with logits: give it a forward that returns the logits alone"
    )


def model_summary(model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> str:
    """Table of the layers with output shapes and parameter counts, by torchsummary.

    A network that torchsummary cannot show has a table of our own, which says so. Neither the model
    nor the state of the random number generators changes.

    Args:
        model: on any device.
        input_size: (C, H, W) of one image.

    Returns:
        The table, lines of text.

    Raises:
        UsageError: the network does not take such images.
    """
    from torchsummary import summary  # here, because training does not need it

    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # Copies in evaluation mode: a batch is run, which would change BN's statistics.
    twin, other = (copy.deepcopy(model).cpu().float().eval() for _ in range(2))
    text = io.StringIO()
    with torch.random.fork_rng(devices=[]):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(text):
            summary(twin, input_size, device="cpu")  # fails in many ways: only tensors may be given
        table = text.getvalue().strip("\n")
        if f"Total params: {total:,}\n" not in table:  # or it overlooks parameters, or counts twice
            table = _layer_table(other, input_size)
    counts = f"Trainable params: {trainable:,}\nNon-trainable params: {total - trainable:,}"
    return re.sub("Trainable params: .*\nNon-trainable params: .*", counts, table)


def _layer_table(model: nn.Module, input_size: tuple[int, int, int]) -> str:
    """A line for each module that is called, in the order in which they end."""
    rows, counted = [("Layer", "Type", "Output Shape", "Param #")], set()

    def hook_of(name: str):
        def hook(module, _, output):
            own = set(module.parameters()) - counted
            counted.update(own)
            number = f"{sum(p.numel() for p in own):,}"
            rows.append((name, type(module).__name__, _shape_of(output), number))

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(hook_of(name or "(all)"))
    with torch.no_grad():
        first_scores(model, torch.rand(2, *input_size))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3].rjust(widths[3])]) for row in rows]
    return "\n".join([
        "Our own table: torchsummary cannot show this network. Each parameter is counted once.",
        lines[0], "=" * len(lines[0]), *lines[1:], "=" * len(lines[0]),
        f"Total params: {sum(p.numel() for p in model.parameters()):,}",
        "Trainable params: 0\nNon-trainable params: 0",
    ])  # fmt: skip


def _shape_of(output: Any) -> str:
    if isinstance(output, Tensor):
        return str([-1, *output.shape[1:]])
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return ", ".join(_shape_of(part) for part in output if isinstance(part, Tensor)) or "-"
    return "-"


def freeze_idle_biases(model: nn.Module) -> None:
    """Exclude biases from training that a BN right behind their convolution cancels, in place.

    A BN subtracts the mean of the batch, and with it the bias: its gradient is nothing but rounding
    errors. The bias keeps its value and its place in the ``state_dict``, and the network computes
    the same as before. In ``CustomResNet``, forward hooks of these convolutions and of their BN are
    not called in training.

    Args:
        model: any network. A bias is frozen only if its plain ``nn.Conv2d`` is everywhere in an
            ``nn.Sequential`` (or a subclass, if that calls its layers in their order) and an
            ``nn.BatchNorm2d`` follows there, directly or behind an ``nn.MaxPool2d``.

    Source:
        Ioffe and Szegedy, "Batch Normalization" (2015), section 3.2.
    """
    followers: dict[nn.Module, list[nn.Module | None]] = {}  # a layer may be at several places
    for parent in model.modules():
        layers, behind = list(parent.children()), []
        if isinstance(parent, nn.Sequential):
            layers = [layer for layer in parent if type(layer) is not nn.MaxPool2d]
            behind = layers[1:]
        for layer, following in itertools.zip_longest(layers, behind):
            followers.setdefault(layer, []).append(following)
    with _in_mode(model, training=True):
        idle = {
            layer
            for layer, behind in followers.items()
            if type(layer) is nn.Conv2d and all(map(_takes_batch_statistics, behind))
        }
    others = (layer for layer in model.modules() if layer not in idle)
    used = {parameter for layer in others for parameter in layer.parameters(recurse=False)}
    for layer in idle:
        if layer.bias is not None and layer.bias not in used:
            layer.bias.requires_grad_(False)


def _takes_batch_statistics(layer: nn.Module | None) -> bool:
    # A BN that stays in evaluation mode subtracts its running mean, which does not contain the
    # bias; one without running statistics always subtracts that of the batch.
    return type(layer) is nn.BatchNorm2d and (layer.training or layer.running_mean is None)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module is in its own mode again."""
    with _in_mode(model, training=False):
        yield


@contextlib.contextmanager
def _in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def first_scores(model: nn.Module, images: Tensor) -> Tensor:
    """The (N, K) scores of a first batch.

    Args:
        model: any network.
        images: (N, ...) on its device.

    Raises:
        UsageError: the network does not take such images, or gives something else; the message has
            the first line of what torch says.
    """
    try:
        output = model(images)
    except (RunError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"the network does not take {_described(model, images)}: {said}"
        ) from error
    scores = class_scores(output)
    if scores.ndim != 2 or len(scores) != len(images) or not scores.is_floating_point():
        kind = str(scores.dtype).removeprefix("torch.")
        raise UsageError(
            f"the network gives {kind} of shape {tuple(scores.shape)} for {len(images)} images; "
            "expected (N, K) logits or log-probabilities: does it end in a layer of K outputs?"
        )
    return scores


def _described(model: nn.Module, images: Tensor) -> str:
    """Images in words, with what is likely to be wrong about them."""
    shape, kind = tuple(images.shape[1:]), str(images.dtype).removeprefix("torch.")
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    if not images.is_floating_point():
        return f"{kind} images of {shape} (give floats, normalised: images.float() / 255)"
    if images.dtype != own:
        return f"{kind} images of {shape} (its weights are {str(own).removeprefix('torch.')})"
    if len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4):
        return f"images of {shape} (give (C, H, W): images.permute(0, 3, 1, 2))"
    if len(shape) == 2:
        return f"images of {shape} (give (C, H, W): images.unsqueeze(1))"
    return f"images of {shape}"


class Classifier:
    """The scores of a network whatever it gives: logits, log-probabilities or probabilities.

    The first call decides which, so a batch of one kind of images follows.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._ends_in_softmax: bool | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """(N, K) float32 logits or log-probabilities.

        Raises:
            UsageError: as :func:`first_scores` says, of the first call.
        """
        if self._ends_in_softmax is None:
            scores = first_scores(self.model, images)
            self._ends_in_softmax = gives_probabilities(self.model, images, scores)
        else:
            scores = class_scores(self.model(images))
        scores = scores.float()
        # Of a probability that is 0 in float32, the logarithm of the least number above 0.
        return scores.clamp_min(torch.finfo().tiny).log() if self._ends_in_softmax else scores


def gives_probabilities(model: nn.Module, images: Tensor, scores: Tensor) -> bool:
    """Whether a network ends in a softmax.

    Args:
        model: in evaluation mode.
        images: (N, ...), one or more.
        scores: (N, K) of these images.
    """
    # The logits of a single image may sum to 1 by chance; those of its negative then do not.
    return _are_distributions(scores) and _are_distributions(class_scores(model(1 - 2 * images)))


def _are_distributions(scores: Tensor) -> bool:
    sums = scores.float().sum(1)
    return bool(((scores >= 0).all(1) & ((sums - 1).abs() < 1e-3)).all()) and len(scores) > 0


def probabilities(output: Tensor) -> Tensor:
    """(..., K) float32 probabilities from (..., K) logits or log-probabilities."""
    return output.float().softmax(-1)
