"""The assignment's network, a small ResNet for 32x32 images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from onecycle.results.weights import WeightsFile


class _ConvBlock(nn.Sequential):
    """Conv 3x3 (stride 1, padding 1) >> MaxPool2D if wanted >> BN >> ReLU."""

    calls_in_order = True  # for a replacement of its forward, which may do them together

    def forward(self, images: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self._bias_is_idle():
                return self._without_bias(images)
        for layer in self:
            images = layer(images)
        return images

    def _bias_is_idle(self) -> bool:
        """Whether it is frozen and the BN behind it cancels it now."""
        if tuple(self._modules) not in (("conv", "bn", "relu"), ("conv", "pool", "bn", "relu")):
            return False  # a slice of a block, or a block with additional layers
        bias, bn = self.conv.bias, self.bn
        frozen = bias is not None and not bias.requires_grad
        plain = type(self.conv) is nn.Conv2d and type(bn) is nn.BatchNorm2d
        running = bn.track_running_stats and bn.momentum is not None
        return frozen and plain and running and bn.training

    def _without_bias(self, images: Tensor) -> Tensor:
        # Adding the bias would read and write the activations once more, for nothing but its part
        # in BN's running mean.
        conv, bn = self.conv, self.bn
        x = conv._conv_forward(images, conv.weight, None)
        if hasattr(self, "pool"):
            x = self.pool(x)
        mean = bn.running_mean - conv.bias
        x = F.batch_norm(x, mean, bn.running_var, bn.weight, bn.bias, True, bn.momentum, bn.eps)
        bn.running_mean.copy_(mean + conv.bias)
        bn.num_batches_tracked.add_(1)
        return self.relu(x)


def _conv_block(in_channels: int, out_channels: int, *, pool: bool = False) -> _ConvBlock:
    block = _ConvBlock()
    block.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
    if pool:
        block.add_module("pool", nn.MaxPool2d(kernel_size=2))
    block.add_module("bn", nn.BatchNorm2d(out_channels))
    block.add_module("relu", nn.ReLU())
    return block


class ResidualLayer(nn.Module):
    """X = Conv >> MaxPool2D >> BN >> ReLU, then Add(X, ResBlock(X)).

    The ResBlock is Conv-BN-ReLU-Conv-BN-ReLU. Its last ReLU is before the addition, as in the
    assignment.

    Args:
        in_channels: channels of the input.
        out_channels: channels of X, of the ResBlock and of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.x = _conv_block(in_channels, out_channels, pool=True)
        self.res_block = nn.Sequential(
            _conv_block(out_channels, out_channels),
            _conv_block(out_channels, out_channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H // 2, W // 2)."""
        x = self.x(images)
        return x + self.res_block(x)


class CustomResNet(nn.Module):
    """The assignment's custom ResNet; 6,575,370 parameters for ten classes.

    PrepLayer 64 >> Layer1 128 (residual) >> Layer2 256 >> Layer3 512 (residual) >> MaxPool 4 >>
    FC >> SoftMax.

    The SoftMax gives log-probabilities. ``CrossEntropyLoss`` has the same value and gradient on
    them as on the logits, because log-softmax is idempotent; on probabilities it would not.

    The assignment's images are 32x32. Larger ones work too, best in multiples of 8: the last pooling
    then takes the maximum of the whole map.

    Args:
        num_classes: K, 1 or more.

    Raises:
        ValueError: ``num_classes`` is below 1.

    Source:
        The trunk is David Page's, "How to Train Your ResNet" (2018), with two residual layers.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be 1 or more")
        self.prep_layer = _conv_block(3, 64)
        self.layer1 = ResidualLayer(64, 128)
        self.layer2 = _conv_block(128, 256, pool=True)
        self.layer3 = ResidualLayer(256, 512)
        self.max_pool = nn.MaxPool2d(kernel_size=4, ceil_mode=True)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(512, num_classes)
        self.softmax = nn.LogSoftmax(dim=1)

    @classmethod
    def from_pretrained(cls, weights: str | os.PathLike | WeightsFile) -> CustomResNet:
        """The network with the weights of a file, on the CPU and in evaluation mode.

        Args:
            weights: a safetensors file, or what ``load_weights`` read from one; that also has the
                class names, the mean and the standard deviation.

        Returns:
            A network for as many classes as the file has.

        Raises:
            CheckpointError: the file is missing or damaged, or has no weights of this network.
            UsageError: the package safetensors is not installed.
        """
        # Imported here, because the network itself needs only torch.
        from onecycle.results.weights import WeightsFile, check_fit, load_weights

        if not isinstance(weights, WeightsFile):
            weights = load_weights(weights)
        with torch.device("meta"):  # draws no weights, so that no random state changes
            model = cls(num_classes=len(weights.classes))
        check_fit(weights, model.state_dict())
        copies = {name: value.clone() for name, value in weights.state_dict.items()}
        model.load_state_dict(copies, assign=True)
        return model.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Classify a batch of images.

        Args:
            images: (N, 3, S, S) float with S of 32 or more, normalised by channel.

        Returns:
            (N, K) log-probabilities, float32 or wider, also under autocast.
        """
        x = self.prep_layer(images)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.max_pool(x)
        if x.shape[-2:] != (1, 1):  # of larger images: the largest value of all
            x = F.adaptive_max_pool2d(x, 1)
        logits = self.fc(self.flatten(x))
        # In half precision, log-softmax would round small probabilities to 0.
        return self.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)))
