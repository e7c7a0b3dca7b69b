"""What can be done with any network."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def model_summary(model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> str:
    """torchsummary's table of the layers. The model and the random numbers stay as they are.

    Args:
        model: on any device.
        input_size: (C, H, W) of one image.
    """
    from torchsummary import summary  # here, so that training does without it

    # torchsummary runs a batch in the mode it finds, which would move BN's statistics.
    twin = copy.deepcopy(model).cpu().float().eval()
    text = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(text):
        summary(twin, input_size, device="cpu")
    return text.getvalue().strip("\n")


def freeze_idle_biases(model: nn.Module) -> None:
    """Leave the biases of convolutions in front of a BN as they are, in place, and out of training.

    In training the BN behind a convolution takes away what its bias adds, so that it has no gradient
    but rounding errors. Names, shapes and number of the parameters stay, as does what the network
    computes. In ``CustomResNet``, forward hooks of these convolutions and of their BN are not called
    in training.

    Args:
        model: any network; convolutions are looked for in its ``nn.Sequential`` parts, a pooling
            between convolution and BN included.

    Source:
        Ioffe and Szegedy, "Batch Normalization" (2015), section 3.2.
    """
    for block in model.modules():
        if not isinstance(block, nn.Sequential):
            continue
        layers = [layer for layer in block if not isinstance(layer, nn.MaxPool2d)]
        for layer, following in zip(layers, layers[1:]):
            is_idle = isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d)
            if is_idle and layer.bias is not None:
                layer.bias.requires_grad_(False)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; then each module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def probabilities(output: Tensor) -> Tensor:
    """(..., K) float32 probabilities from logits or log-probabilities, which give the same."""
    return output.float().softmax(-1)
