"""Convolution >> max pooling >> batch norm >> ReLU in fewer passes over the memory of a GPU."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MOST_NUMBERS = 2**31 - 2**20
"""In one tensor: the kernels count in 32 bits, up to one tile beyond the end."""
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def fuse(model: nn.Module) -> int:
    """Let a network's blocks compute by kernels of our own in training, in place.

    A block is Conv >> BN >> ReLU or Conv >> MaxPool 2x2 >> BN >> ReLU in an ``nn.Sequential``, or in
    a subclass that says with ``calls_in_order = True`` that its ``forward`` calls its layers one by
    one. Parameters, buffers, their names and what they mean stay as they are. Wherever a block,
    its input or the machine is not what the kernels take, the layers compute as before: in
    evaluation, on a CPU, without Triton, in float64, in another memory format than channels_last,
    with hooks on a layer. The kernels round in other places than PyTorch's, so the last bits differ.

    Call a block once before a CUDA graph captures it: the kernels are compiled then.

    Args:
        model: any network; calling it again changes nothing.

    Returns:
        The number of blocks.
    """
    count = 0
    for layer in model.modules():
        if isinstance(layer, nn.Sequential) and _calls_in_order(layer):
            if found := sum(len(part) > 1 for part in _parts(layer)):
                layer.forward = functools.partial(_forward, layer)
                count += found
    return count


def _calls_in_order(layer: nn.Sequential) -> bool:
    own = type(layer).forward is not nn.Sequential.forward
    return not own or getattr(layer, "calls_in_order", False)


def _parts(layers: nn.Sequential) -> list[tuple[nn.Module, ...]]:
    """The layers in their order; those of a block together."""
    left, parts = tuple(layers), []
    while left:
        size = next((size for size in (4, 3) if _is_block(left[:size])), 1)
        parts.append(left[:size])
        left = left[size:]
    return parts


def _is_block(layers: tuple[nn.Module, ...]) -> bool:
    kinds = tuple(map(type, layers))
    if kinds not in (_PLAIN, _POOLED) or (kinds == _POOLED and not _halves(layers[1])):
        return False
    bn = layers[-2]
    tensors = bn.weight, bn.bias, bn.running_mean, bn.running_var
    known = all(t is not None and t.dtype == torch.float32 for t in tensors)
    return known and bn.momentum is not None


_PLAIN = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)
_POOLED = (nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU)


def _halves(pool: nn.MaxPool2d) -> bool:
    pairs = (pool.kernel_size, 2), (pool.stride, 2), (pool.padding, 0), (pool.dilation, 1)
    plain = not (pool.ceil_mode or pool.return_indices)
    return plain and all(found in (value, (value, value)) for found, value in pairs)


def _forward(block: nn.Sequential, images: Tensor) -> Tensor:
    if not (block.training and _runs_on(images.device.type)):
        return type(block).forward(block, images)
    for part in _parts(block):
        hooked = any(getattr(layer, name) for layer in part for name in _HOOKS)
        if len(part) == 1 or hooked or not part[-2].training:
            for layer in part:
                images = layer(images)
        else:
            images = _block(part, images)
    return images


@functools.cache
def _runs_on(device: str) -> bool:
    if device not in ("cuda", "cpu") or importlib.util.find_spec("triton") is None:
        return False
    from onecycle.training.kernels import ON_CPU  # Triton takes a while

    return device == "cuda" or ON_CPU


def _block(layers: tuple[nn.Module, ...], images: Tensor) -> Tensor:
    conv, *others = layers
    bn, bias = others[-2], conv.bias
    # BN cancels a frozen bias; added later, it would be one more pass.
    shift = None if bias is None or bias.requires_grad else bias
    x = conv._conv_forward(images, conv.weight, None if shift is not None else bias)
    if _fits(x, pool=len(others) == 3):
        bn.num_batches_tracked.add_(1)
        return _Fused.apply(x, bn.weight, bn.bias, bn, shift, len(others) == 3)
    if shift is not None:
        x = x + shift.to(x.dtype).view(-1, 1, 1)
    for layer in others:
        x = layer(x)
    return x


def _fits(x: Tensor, *, pool: bool) -> bool:
    n, _, height, width = x.shape
    pixels = n * (height // 2) * (width // 2) if pool else n * height * width
    return (
        x.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() < MOST_NUMBERS
        and pixels > 1  # PyTorch refuses statistics of one pixel, and says so
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, bn: nn.BatchNorm2d,
        shift: Tensor | None, pool: bool,
    ) -> Tensor:  # fmt: skip
        from onecycle.training import kernels

        running = bn.running_mean, bn.running_var
        y, taken, index, mean, rstd = kernels.forward(
            x, weight, bias, running, shift, float(bn.momentum), bn.eps, pool
        )
        ctx.save_for_backward(taken, index, mean, rstd, weight, bias)
        ctx.shape = x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from onecycle.training import kernels

        taken, index, *affine = ctx.saved_tensors
        of_input = ctx.needs_input_grad[0]
        found = kernels.backward(grad, taken, index, affine, ctx.shape, of_input=of_input)
        return *found, None, None, None
