"""Helpers for any network."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from onecycle.errors import UsageError


def model_summary(model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> str:
    """Table of the layers with output shapes and parameter counts, by torchsummary.

    Neither the model nor the state of the random number generators changes.

    Args:
        model: on any device.
        input_size: (C, H, W) of one image.

    Returns:
        The table, lines of text.
    """
    from torchsummary import summary  # here, because training does not need it

    # A copy in evaluation mode: torchsummary runs a batch, which would change BN's statistics.
    twin = copy.deepcopy(model).cpu().float().eval()
    text = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(text):
        summary(twin, input_size, device="cpu")
    return text.getvalue().strip("\n")


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer of another model, with which nothing would be trained.

    Raises:
        UsageError: the optimizer holds none of the model's trainable parameters.
    """
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    if not any(id(p) in trained for group in optimizer.param_groups for p in group["params"]):
        raise UsageError(
            "the optimizer holds none of the model's trainable parameters; make it from this "
            "model's parameters()"
        )


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


def probabilities(output: Tensor) -> Tensor:
    """(..., K) float32 probabilities from (..., K) logits or log-probabilities."""
    return output.float().softmax(-1)
