"""Triton kernels for what follows a convolution: max pooling, batch norm and ReLU, both ways.

Activations (N, C, H, W) in channels_last are matrices here: a row for each pixel of each image, a
column for each channel. A program takes ``span`` rows of ``COLUMNS`` channels, ``ROWS`` at a time. It
leaves its part of a sum in a row of a table, and a second kernel adds the parts in the order of that
table: so sums are the same bits each time, as they would not be with atomic additions.

Importing this module needs Triton. With TRITON_INTERPRET=1 the kernels run on the CPU, for tests.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

ROWS, COLUMNS = 32, 64
"""Of a tile. Tuned on paper only: 64 channels of bfloat16 are a whole line of memory."""
PROGRAMS = 512
"""That share a sum, at most: a few for each of a large GPU's processors."""
PARTS = 64
"""Rows of the table of parts that are added at a time."""


# Only the number of channels decides how wide a load can be: one compilation serves all layers.
_kernel = triton.jit(do_not_specialize=["rows", "height", "width", "span", "parts"])


@triton.jit
def _window(row, column, channels, height, width):
    """Where the first pixel of a row's 2x2 window is."""
    across, down = width // 2, height // 2
    image, of_image = row // (across * down), row % (across * down)
    y, x = 2 * (of_image // across), 2 * (of_image % across)
    return ((image * height + y) * width + x) * channels + column


@triton.jit
def _larger(value, place, other, other_place):
    """The maximum as PyTorch takes it: the first of equal values, and NaN before all others."""
    take = (other > value) | (other != other)
    return tl.where(take, other, value), tl.where(take, other_place, place)


@triton.jit
def _normalised(value, mean, rstd, weight, bias):
    """Before the ReLU, rounded as the output: so forward and backward cut off the same."""
    normal = (value.to(tl.float32) - mean) * rstd * weight + bias
    return normal.to(value.dtype).to(tl.float32)


@triton.jit
def _number(x, at, inside):
    return tl.load(x + at, inside, other=0.0).to(tl.float32)


@_kernel
def _statistics(
    x, pooled, index, means, squares, rows, channels, height, width, span,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each program's rows; of pooled ones, the pooling too."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    lane = tl.arange(0, ROWS)[:, None]
    begin = tl.program_id(0) * span
    end = tl.minimum(begin + span, rows)
    mean = tl.zeros((ROWS, COLUMNS), tl.float32)
    square = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(begin, end, ROWS):
        row = first + lane
        inside = (row < end) & (column < channels)
        if index is not None:
            at = _window(row, column, channels, height, width)
            below = width * channels
            value, place = _number(x, at, inside), tl.zeros((ROWS, COLUMNS), tl.int8)
            value, place = _larger(value, place, _number(x, at + channels, inside), 1)
            value, place = _larger(value, place, _number(x, at + below, inside), 2)
            value, place = _larger(value, place, _number(x, at + below + channels, inside), 3)
            tl.store(pooled + row * channels + column, value, inside)
            tl.store(index + row * channels + column, place.to(tl.int8), inside)
        else:
            value = _number(x, row * channels + column, inside)
        step = tl.where(inside, value - mean, 0.0)  # Welford's, for each element of the tile
        mean += step * (1.0 / ((first - begin) // ROWS + 1))
        square += step * (value - mean)
    count = (tl.maximum(end - begin - lane + ROWS - 1, 0) // ROWS).to(tl.float32)
    total = tl.sum(mean * count, axis=0)[None, :] / (end - begin)
    square += count * (mean - total) * (mean - total)
    at = tl.program_id(0) * channels + column
    tl.store(means + at, total, column < channels)
    tl.store(squares + at, tl.sum(square, axis=0)[None, :], column < channels)


@_kernel
def _merge_statistics(
    means, squares, mean, rstd, running_mean, running_var, shift, rows, channels, span, parts,
    momentum, eps, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of all rows: mean and 1 / standard deviation; and the running statistics."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    lane = tl.arange(0, PARTS)[:, None]
    total = tl.zeros((1, COLUMNS), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + lane
        inside = (part < parts) & (column < channels)
        count = (tl.minimum(rows - part * span, span)).to(tl.float32)
        value = tl.load(means + part * channels + column, inside, other=0.0)
        total += tl.sum(value * tl.where(inside, count / rows, 0.0), axis=0)[None, :]
    square = tl.zeros((1, COLUMNS), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + lane
        inside = (part < parts) & (column < channels)
        count = (tl.minimum(rows - part * span, span)).to(tl.float32)
        apart = tl.load(means + part * channels + column, inside, other=0.0) - total
        within = tl.load(squares + part * channels + column, inside, other=0.0)
        square += tl.sum(tl.where(inside, within + count * apart * apart, 0.0), axis=0)[None, :]
    real = column < channels
    tl.store(mean + column, total, real)
    tl.store(rstd + column, tl.div_rn(1.0, tl.sqrt_rn(square / rows + eps)), real)
    if shift is not None:
        total += tl.load(shift + column, real, other=0.0)
    kept = tl.load(running_mean + column, real, other=0.0)
    tl.store(running_mean + column, (1 - momentum) * kept + momentum * total, real)
    kept = tl.load(running_var + column, real, other=0.0)
    tl.store(running_var + column, (1 - momentum) * kept + momentum * square / (rows - 1), real)


@_kernel
def _apply(
    x, y, mean, rstd, weight, bias, rows, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """ReLU of the normalised values; NaN stays NaN."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    real = column < channels
    inside = (row < rows) & real
    at = row * channels + column
    value = _normalised(
        tl.load(x + at, inside, other=0.0),
        tl.load(mean + column, real, other=0.0), tl.load(rstd + column, real, other=0.0),
        tl.load(weight + column, real, other=0.0), tl.load(bias + column, real, other=0.0),
    )  # fmt: skip
    tl.store(y + at, tl.where(value <= 0, 0.0, value), inside)


@_kernel
def _sums(
    x, grad, sums, products, mean, rstd, weight, bias, rows, channels, span,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of each program's rows: gradient behind the ReLU, and the same times what it scales."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    real = column < channels
    m, r = tl.load(mean + column, real, other=0.0), tl.load(rstd + column, real, other=0.0)
    w, b = tl.load(weight + column, real, other=0.0), tl.load(bias + column, real, other=0.0)
    begin = tl.program_id(0) * span
    end = tl.minimum(begin + span, rows)
    plain = tl.zeros((ROWS, COLUMNS), tl.float32)
    scaled = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        inside = (row < end) & real
        value = tl.load(x + row * channels + column, inside, other=0.0)
        through = inside & ~(_normalised(value, m, r, w, b) <= 0)
        given = tl.where(through, _number(grad, row * channels + column, inside), 0.0)
        plain += given
        scaled += tl.where(inside, given * ((value.to(tl.float32) - m) * r), 0.0)
    at = tl.program_id(0) * channels + column
    tl.store(sums + at, tl.sum(plain, axis=0)[None, :], real)
    tl.store(products + at, tl.sum(scaled, axis=0)[None, :], real)


@_kernel
def _merge_sums(
    sums, products, grad_bias, grad_weight, channels, parts,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The two sums over all rows."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    plain = tl.zeros((1, COLUMNS), tl.float32)
    scaled = tl.zeros((1, COLUMNS), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)[:, None]
        inside = (part < parts) & (column < channels)
        at = part * channels + column
        plain += tl.sum(tl.load(sums + at, inside, other=0.0), axis=0)[None, :]
        scaled += tl.sum(tl.load(products + at, inside, other=0.0), axis=0)[None, :]
    tl.store(grad_bias + column, plain, column < channels)
    tl.store(grad_weight + column, scaled, column < channels)


@_kernel
def _apply_backward(
    x, grad, index, grad_x, grad_bias, grad_weight, mean, rstd, weight, bias, rows, channels,
    height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient before batch norm; of pooled images, at the pixels that they were taken from."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    real = column < channels
    inside = (row < rows) & real
    m, r = tl.load(mean + column, real, other=0.0), tl.load(rstd + column, real, other=0.0)
    w, b = tl.load(weight + column, real, other=0.0), tl.load(bias + column, real, other=0.0)
    offset = tl.load(grad_bias + column, real, other=0.0) / rows
    slope = tl.load(grad_weight + column, real, other=0.0) / rows
    value = tl.load(x + row * channels + column, inside, other=0.0)
    given = _number(grad, row * channels + column, inside)
    given = tl.where(_normalised(value, m, r, w, b) <= 0, 0.0, given)
    scaled = (value.to(tl.float32) - m) * r
    result = w * r * (given - offset - scaled * slope)
    if index is not None:
        at = grad_x + _window(row, column, channels, height, width)
        below = width * channels
        place = tl.load(index + row * channels + column, inside, other=0)
        tl.store(at, tl.where(place == 0, result, 0.0), inside)
        tl.store(at + channels, tl.where(place == 1, result, 0.0), inside)
        tl.store(at + below, tl.where(place == 2, result, 0.0), inside)
        tl.store(at + below + channels, tl.where(place == 3, result, 0.0), inside)
    else:
        tl.store(grad_x + row * channels + column, result, inside)


ON_CPU = isinstance(_apply, InterpretedFunction)
"""Whether Triton interprets the kernels, so that they take tensors on the CPU."""


def _shares(rows: int, channels: int) -> tuple[int, int]:
    """Rows that a program takes of a sum, a multiple of ``ROWS``, and the number of programs."""
    programs = max(PROGRAMS // triton.cdiv(channels, COLUMNS), 1)
    span = triton.cdiv(triton.cdiv(rows, programs), ROWS) * ROWS
    return span, triton.cdiv(rows, span)


def _on(x: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor], shift: Tensor | None,
    momentum: float, eps: float, pool: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """ReLU of batch norm in training, behind max pooling or not.

    Args:
        x: (N, C, H, W) in channels_last, float32, bfloat16 or float16, of less than 2**31 numbers.
        weight: (C,) float32 scales of batch norm.
        bias: (C,) float32.
        running: (C,) float32 mean and variance, which are updated in place.
        shift: (C,) float32 that the running mean has more than the mean of ``x``; None: nothing.
        momentum: weight of this batch in the running statistics, 0..1.
        eps: added to the variance.
        pool: whether each 2x2 pixels become their largest first.

    Returns:
        The output (N, C, h, w); what batch norm has taken, of the same shape (``x`` itself without
        pooling); which of the four pixels it is, int8, or None; (C,) mean and 1 / deviation.
    """
    (n, channels, height, width), y_shape = x.shape, x.shape
    pooled = index = None
    if pool:
        y_shape = (n, channels, height // 2, width // 2)
        pooled = _empty(y_shape, x, x.dtype)
        index = _empty(y_shape, x, torch.int8)
    y, taken = _empty(y_shape, x, x.dtype), x if pooled is None else pooled
    rows = y.numel() // channels
    span, parts = _shares(rows, channels)
    table = x.new_empty((2, parts, channels), dtype=torch.float32)
    mean, rstd = x.new_empty((2, channels), dtype=torch.float32)
    across = triton.cdiv(channels, COLUMNS)
    with _on(x):
        _statistics[(parts, across)](
            x, pooled, index, *table, rows, channels, height, width, span, ROWS, COLUMNS
        )
        _merge_statistics[(across,)](
            *table, mean, rstd, *running, shift, rows, channels, span, parts, momentum, eps,
            PARTS, COLUMNS,
        )  # fmt: skip
        _apply[(triton.cdiv(rows, ROWS), across)](
            taken, y, mean, rstd, weight, bias, rows, channels, ROWS, COLUMNS
        )
    return y, taken, index, mean, rstd


def backward(
    grad: Tensor, taken: Tensor, index: Tensor | None, affine: tuple[Tensor, ...], shape: torch.Size,
    *, of_input: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """The gradients of :func:`forward`.

    Args:
        grad: of its output, same shape and number format.
        taken: as it was returned.
        index: as it was returned.
        affine: mean and 1 / deviation as they were returned, weight and bias as they were given.
        shape: of ``x``.
        of_input: whether the first of the results is needed; else it is None.

    Returns:
        Gradients of ``x`` (its shape and number format), ``weight`` and ``bias`` ((C,) float32).
    """
    grad = grad.contiguous(memory_format=torch.channels_last)
    (_, channels, height, width) = shape
    rows = grad.numel() // channels
    span, parts = _shares(rows, channels)
    table = grad.new_empty((2, parts, channels), dtype=torch.float32)
    grad_bias, grad_weight = grad.new_empty((2, channels), dtype=torch.float32)
    across, grad_x = triton.cdiv(channels, COLUMNS), None
    with _on(grad):
        _sums[(parts, across)](
            taken, grad, *table, *affine, rows, channels, span, ROWS, COLUMNS
        )  # fmt: skip
        _merge_sums[(across,)](*table, grad_bias, grad_weight, channels, parts, PARTS, COLUMNS)
        if of_input:
            grad_x = _empty(shape, grad, grad.dtype)
            if index is not None and (height % 2 or width % 2):
                grad_x.zero_()  # the last row and column of an odd size are in no window
            _apply_backward[(triton.cdiv(rows, ROWS), across)](
                taken, grad, index, grad_x, grad_bias, grad_weight, *affine, rows, channels,
                height, width, ROWS, COLUMNS,
            )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def _empty(shape, like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)
