"""Helpers for any network, and for the functions that make it and its optimizer."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onecycle.errors import UsageError
from onecycle.outputs import first_scores


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
    text = io.StringIO()
    with torch.random.fork_rng(devices=[]):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(text):
            summary(_copy(model), input_size, device="cpu")
        table = text.getvalue().strip("\n")
        if f"Total params: {total:,}\n" not in table:  # it failed or counted otherwise
            table = _layer_table(_copy(model), input_size)
    counts = f"Trainable params: {trainable:,}\nNon-trainable params: {total - trainable:,}"
    return re.sub("Trainable params: .*\nNon-trainable params: .*", counts, table)


def _copy(model: nn.Module) -> nn.Module:
    """In evaluation mode: a batch is run, which would change BN's statistics."""
    return copy.deepcopy(model).cpu().float().eval()


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


def last_layer(model: nn.Module) -> str | None:
    """The name of the last linear layer or convolution, which gives the classes; None: no such."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, _GIVE_CLASSES)]
    return names[-1] if names else None


_GIVE_CLASSES = (nn.Linear, nn.Conv2d)


@torch.no_grad()
def scale_head(model: nn.Module, factor: float) -> None:
    """Multiply the last layer's weights and biases, in place."""
    head = last_layer(model)
    for name, parameter in model.named_parameters():
        if head is not None and name.startswith(f"{head}."):
            parameter.mul_(factor)


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises each of ``groups`` parts of a batch on its own, in training.

    The running statistics follow the mean of the parts'. A batch that the number of groups does not
    divide is one part.

    Source:
        Hoffer, Hubara and Soudry, "Train longer, generalize better" (2017): ghost batch norm.
    """

    groups = 1

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) as it comes, normalised."""
        if not self.training or self.groups == 1 or len(images) % self.groups:
            return super().forward(images)
        parts, statistics = [], []
        for part in images.chunk(self.groups):
            own = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            # With momentum 1 they are this part's.
            parts.append(F.batch_norm(part, *own, self.weight, self.bias, True, 1.0, self.eps))
            statistics.append(torch.stack(own))
        mean, var = torch.stack(statistics).mean(0)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        self.num_batches_tracked.add_(1)
        return torch.cat(parts)


def group_batch_norm(model: nn.Module, groups: int) -> None:
    """Let every batch norm of a network be a :class:`GroupedBatchNorm2d`, in place.

    Names, shapes and evaluation stay the same. What keeps no running statistics is left out.
    """
    for layer in model.modules() if groups > 1 else ():
        if type(layer) is nn.BatchNorm2d and layer.track_running_stats and layer.momentum:
            layer.__class__ = GroupedBatchNorm2d
            layer.groups = groups


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


MADE = {
    "model": ("forward", "lambda classes: Net(classes)"),
    "optimizer": (
        "param_groups",
        "lambda model, recipe: torch.optim.SGD(model.parameters(), lr=0.1)",
    ),
    "scheduler": (
        "step",
        "lambda optimizer, recipe, finding, steps_per_epoch: "
        "torch.optim.lr_scheduler.StepLR(optimizer, steps_per_epoch)",
    ),
}
"""What each part has that a given function makes, and an example of such a function."""


def check_maker(part: str, function: Any, *arguments: Any) -> None:
    """Refuse what cannot be called to make a part of a run; it is not called.

    Args:
        part: a name of ``MADE``.
        function: as it was given.
        arguments: as many as ``Run`` calls it with.

    Raises:
        UsageError: it is no function of these arguments.
    """
    expected = f"give a function, such as {MADE[part][1]}"
    is_made = (
        isinstance(function, nn.Module) if part == "model" else hasattr(function, "state_dict")
    )
    if not callable(function) or is_made:
        raise UsageError(f"{part} is {in_words(function)}; {expected}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise UsageError(
            f"{part} is {in_words(function)}, which does not take what it is called with "
            f"({error}); {expected}"
        ) from error
    except ValueError:  # of a built-in function the arguments are not known
        pass


def make(part: str, function: Any, *arguments: Any) -> Any:
    """A part of a run, made by the function that was given for it.

    Args:
        part: a name of ``MADE``.
        function: as it was given; its own errors stay as they are.
        arguments: what it is called with.

    Raises:
        UsageError: it is no function of these arguments, or makes something else.
    """
    check_maker(part, function, *arguments)
    made, (has, example) = function(*arguments), MADE[part]
    is_part = hasattr(made, has) and not isinstance(made, type)
    if not is_part and not (made is None and part == "scheduler"):
        raise UsageError(
            f"{part} {name_of(function)} gives {in_words(made)}; give a function, such as {example}"
        )
    return made


def name_of(given: Any) -> str:
    """What a network, a function or an augmentation is called where its name must do."""
    if isinstance(given, str):
        return given
    if hasattr(given, "__name__"):  # a class or a function
        return given.__name__
    package = type(given).__module__.partition(".")[0]
    return package if package in ("albumentations", "torchvision") else type(given).__name__


def in_words(given: Any) -> str:
    """What was given where something else is expected."""
    if given is None or isinstance(given, (str, int, float)):
        return repr(given)[:60]
    kind = "an object of type "
    if hasattr(given, "__name__"):
        kind = "the class " if isinstance(given, type) else ""
    return kind + name_of(given)
