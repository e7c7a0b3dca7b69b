"""The assignment's augmentation for whole batches, on the device."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onecycle.data.dataset import CIFAR10_MEAN as CIFAR10_MEAN
from onecycle.data.dataset import CIFAR10_STD as CIFAR10_STD
from onecycle.data.dataset import IMAGE_SIZE_PX, SMALLEST_SIZE_PX, is_square
from onecycle.errors import UsageError

CUTOUT_SIZE_PX = 8
"""Of the assignment's images of 32x32."""


def padding_px(size_px: int) -> int:
    """Border of an image before the crop: 4 pixels for the assignment's 32, an eighth of others."""
    return size_px // 8


def to_bytes(mu: Sequence[float]) -> tuple[int, ...]:
    """A colour of 0..1 as 0..255, rounded."""
    return tuple(round(255 * channel) for channel in mu)


def pad_images(images: np.ndarray, device: torch.device, *, mode: str = "constant") -> Tensor:
    """All images with a border of an eighth, on the device, for :func:`augment_pixels` to crop.

    Args:
        images: (N, S, S, 3) uint8, S of 8 or more.
        device: where the result stays; 4,800 bytes per image of 32x32.
        mode: "constant" for a black border, "reflect" for the image mirrored without its edge.

    Returns:
        (N, S + 2P, S + 2P, 3) uint8, with P of :func:`padding_px`.

    Raises:
        UsageError: the images are of another shape or type.
    """
    size = check_images(images)
    border = padding_px(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # images on the disk cannot be written, and are not
        whole = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    side, end = size + 2 * border, border + size
    padded = whole.new_zeros(len(images), side, side, 3)
    padded[:, border:end, border:end] = whole
    if mode == "reflect":
        for axis in (1, 2):  # rows, then columns with the new rows
            turned = padded.movedim(axis, 0)
            turned[:border] = turned[border + 1 : 2 * border + 1].flip(0)
            turned[end:] = turned[size - 1 : end - 1].flip(0)
    return padded


def check_images(images: np.ndarray) -> int:
    """Their height and width."""
    if images.dtype != np.uint8 or not is_square(images.shape):
        raise UsageError(
            f"the images are {images.dtype} of shape {images.shape}; they must be uint8, "
            f"(N, S, S, 3) with S of {SMALLEST_SIZE_PX} or more"
        )
    return images.shape[1]


@dataclass(frozen=True, slots=True)
class Draws:
    """The random choices for each of B images of S x S pixels, as (B,) tensors."""

    top: Tensor
    """int64, the crop's first row in the padded image, 0..2P."""
    left: Tensor
    """int64, its first column, 0..2P."""
    flip: Tensor
    """bool, whether left and right are exchanged after the crop."""
    hole_top: Tensor
    """int64, the hole's first row after crop and flip, 0..S - 8 for a hole of 8."""
    hole_left: Tensor
    """int64, its first column."""


_WORD = 2**32 - 1
_GOLDEN = 0x9E3779B9


def _mix(word: Tensor | int) -> Tensor | int:
    """A hash: a permutation of 0..2^32-1 that looks random.

    Both factors are below 2^31, so that no product overflows int64 and every device and compiler
    gives the same result.

    Source:
        Constants: Wellons, "Hash Prospector" (2018-2022).
    """
    word = word ^ (word >> 16)
    word = word * 0x21F0AAAD & _WORD
    word = word ^ (word >> 15)
    word = word * 0x735A2D97 & _WORD
    return word ^ (word >> 15)


def _random_words(seed: int, epoch: int, indices: Tensor, count: int) -> Tensor:
    """(count, B) int64 of 0..2^32-1, a function of seed, epoch, image index and row alone."""
    key = _mix(_mix(seed + _GOLDEN & _WORD) ^ (seed >> 32 & _WORD))
    words = _mix(indices + key & _WORD)
    # The key is used twice: with one use, a seed could equal another seed shifted by some images.
    words = _mix((words ^ _mix(key ^ _GOLDEN)) + epoch & _WORD)
    rows = torch.arange(1, count + 1, device=indices.device)[:, None] * _GOLDEN
    return _mix(words + rows & _WORD)


def draw_augmentation(
    seed: int,
    epoch: int,
    indices: Tensor,
    *,
    flip_probability: float = 0.5,
    alternating_flip: bool = False,
    cutout_size_px: int = CUTOUT_SIZE_PX,
    size_px: int = IMAGE_SIZE_PX,
) -> Draws:
    """Crop, flip and hole of each image, a function of (seed, epoch, image index) alone.

    There is no generator with a state: batch size, order, process and device do not change what
    an image gets, and any epoch can be drawn by itself.

    Args:
        seed: 0 or more.
        epoch: 0 or more.
        indices: (B,) int64 image indices, 0..2^32-1, on the device.
        flip_probability: 0..1; ignored with ``alternating_flip``.
        alternating_flip: flip each image in every second epoch: random for the first epoch, then
            in turns.
        cutout_size_px: height and width of the hole, 0..S.
        size_px: S, height and width of the images.

    Source:
        Alternating flip: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024).
    """
    words = _random_words(seed, epoch, indices, 5)
    offsets = 2 * padding_px(size_px) + 1
    holes = size_px - cutout_size_px + 1
    if alternating_flip:
        flip = (_random_words(seed, 0, indices, 3)[2] >> 31) + epoch & 1 == 1
    else:
        flip = words[2] < round(flip_probability * 2**32)
    # The upper bits of a product, because a remainder is slow on a GPU.
    return Draws(
        top=words[0] * offsets >> 32,
        left=words[1] * offsets >> 32,
        flip=flip,
        hole_top=words[3] * holes >> 32,
        hole_left=words[4] * holes >> 32,
    )


def augment_pixels(
    padded: Tensor,
    indices: Tensor,
    draws: Draws,
    fill: Tensor,
    *,
    cutout_size_px: int = CUTOUT_SIZE_PX,
    size_px: int = IMAGE_SIZE_PX,
) -> Tensor:
    """Crop, flip and cut-out of a batch, before normalisation.

    Args:
        padded: (N, S + 2P, S + 2P, 3) uint8, from :func:`pad_images`.
        indices: (B,) int64, which images.
        draws: of the B images.
        fill: (3,) uint8, the colour of the hole.
        cutout_size_px: height and width of the hole, the same as for the draws; 0 for none.
        size_px: S, the same as for the draws.

    Returns:
        (B, S, S, 3) uint8, a new tensor.
    """
    windows = padded.unfold(1, size_px, 1).unfold(2, size_px, 1)  # a view, no copy
    images = windows.permute(0, 1, 2, 4, 5, 3)[indices, draws.top, draws.left]
    images = torch.where(draws.flip[:, None, None, None], images.flip(2), images)
    side = torch.arange(cutout_size_px, device=padded.device)
    rows = draws.hole_top[:, None, None] + side[:, None]
    columns = draws.hole_left[:, None, None] + side
    images[torch.arange(len(indices), device=padded.device)[:, None, None], rows, columns] = fill
    return images
