"""Batches of images for the network: augmented or as they are, normalised, on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from onecycle.data.augmentation import (
    CUTOUT_SIZE_PX,
    Draws,
    augment_pixels,
    check_images,
    draw_augmentation,
    pad_images,
    to_bytes,
)
from onecycle.data.dataset import IMAGE_SIZE_PX
from onecycle.errors import UsageError

_CPU = torch.device("cpu")


class BatchNormalize:
    """(B, S, S, 3) uint8 images to (B, 3, S, S) float32 ones in channels_last order.

    Args:
        mu: mean of each of the three channels, 0..1.
        sigma: standard deviation of each of the three channels, 0..1.
        device: of the images.
        size_px: S, height and width of the images.

    Attributes:
        fill: (3,) uint8, the mean in 0..255: the colour of the hole.
    """

    def __init__(
        self,
        mu: Sequence[float],
        sigma: Sequence[float],
        device: torch.device,
        size_px: int = IMAGE_SIZE_PX,
    ) -> None:
        mean, std = np.array(mu), np.array(sigma)
        # One factor and one summand per byte of an image: three alone would be a loop of three.
        area = size_px**2
        self._scale = torch.tensor(np.tile(1 / (255 * std), area), dtype=torch.float32).to(device)
        self._shift = torch.tensor(np.tile(-mean / std, area), dtype=torch.float32).to(device)
        self.fill = torch.tensor(to_bytes(mu), dtype=torch.uint8).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """The normalised images, a new tensor."""
        values = images.flatten(1).float().mul_(self._scale).add_(self._shift)
        return values.view(images.shape).permute(0, 3, 1, 2)


def _fetcher(
    images: np.ndarray, device: torch.device, prepare: Callable[[np.ndarray], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Reads images that stay in memory or on the disk, ready to be sent; in any thread."""

    def fetch(indices: Tensor) -> Tensor:
        pixels = prepare(images[indices.cpu().numpy()])
        return pixels.pin_memory() if device.type == "cuda" else pixels

    return fetch


def get_train_batch_transform(
    images: np.ndarray,
    mu: Sequence[float],
    sigma: Sequence[float],
    *,
    device: torch.device,
    seed: int = 0,
    flip_probability: float = 0.5,
    alternating_flip: bool = False,
    cutout_size_px: int = CUTOUT_SIZE_PX,
    padding: str = "reflect",
    resident: bool = True,
) -> Callable[[Tensor, int], Tensor]:
    """The training augmentation for whole batches of images that are kept on the device.

    It does what the albumentations pipeline ``transformation.get_train_aug_transform`` does.

    Args:
        images: (N, S, S, 3) uint8, S of 8 or more; a padded copy goes to the device.
        mu: mean of each of the three channels, 0..1.
        sigma: standard deviation of each of the three channels, 0..1.
        device: of the images and the results.
        seed: 0 or more.
        flip_probability: 0..1; 0 if mirroring changes what an image shows, as with digits.
        alternating_flip: flip in every second epoch instead; ``flip_probability`` is ignored.
        cutout_size_px: height and width of the hole, 0..S; 0 for none.
        padding: "constant" for a black border, "reflect" for the image mirrored at its edge.
        resident: keep all images on the device. If they do not fit there, each batch is sent on
            its own, which is slower and gives the same. The result then has ``fetch(indices)``,
            which reads the images ahead, in any thread; what it gives is the third argument.

    Returns:
        ``transform(indices, epoch)``, which takes (B,) int64 image indices on the device and the
        number of the epoch, and gives (B, 3, S, S) float32 in channels_last order.

    Raises:
        UsageError: a number is out of its range, or the images are of another shape or type.
    """
    size = check_images(images)
    if not 0 <= flip_probability <= 1:
        raise UsageError(f"flip_probability is {flip_probability}; it must be from 0 to 1")
    if not 0 <= cutout_size_px <= size:
        raise UsageError(f"cutout_size_px is {cutout_size_px}; it must be from 0 to {size}")
    normalize = BatchNormalize(mu, sigma, device, size)

    def draw(epoch: int, indices: Tensor) -> Draws:
        return draw_augmentation(
            seed, epoch, indices,
            flip_probability=flip_probability, alternating_flip=alternating_flip,
            cutout_size_px=cutout_size_px, size_px=size,
        )  # fmt: skip

    def augment(borders: Tensor, places: Tensor, draws: Draws) -> Tensor:
        return normalize(
            augment_pixels(
                borders, places, draws, normalize.fill,
                cutout_size_px=cutout_size_px, size_px=size,
            )
        )  # fmt: skip

    if not resident:
        fetch = _fetcher(images, device, lambda part: pad_images(part, _CPU, mode=padding))

        def send(indices: Tensor, epoch: int, fetched: Tensor | None = None) -> Tensor:
            pixels = (fetch(indices) if fetched is None else fetched).to(device, non_blocking=True)
            places = torch.arange(len(indices), device=device)
            return augment(pixels, places, draw(epoch, indices))

        send.fetch = fetch
        return send
    padded = pad_images(images, device, mode=padding)

    @lru_cache(maxsize=1)
    def draws_of(epoch: int) -> Tensor:
        # For all images at once: on a GPU 50 kernel launches per epoch instead of per batch.
        draws = draw(epoch, torch.arange(len(images), device=device))
        return torch.stack([draws.top, draws.left, draws.flip, draws.hole_top, draws.hole_left])

    def transform(indices: Tensor, epoch: int) -> Tensor:
        top, left, flip, hole_top, hole_left = draws_of(epoch)[:, indices]
        return augment(padded, indices, Draws(top, left, flip.bool(), hole_top, hole_left))

    return transform


def get_test_batch_transform(
    images: np.ndarray,
    mu: Sequence[float],
    sigma: Sequence[float],
    *,
    device: torch.device,
    resident: bool = True,
) -> Callable[[Tensor, int], Tensor]:
    """The test transform for whole batches: it normalises and does nothing else.

    Args:
        images: (N, S, S, 3) uint8, S of 8 or more; a copy goes to the device.
        mu: mean of each of the three channels, 0..1.
        sigma: standard deviation of each of the three channels, 0..1.
        device: of the images and the results.
        resident: see :func:`get_train_batch_transform`.

    Returns:
        ``transform(indices, epoch)``, as of :func:`get_train_batch_transform`.

    Raises:
        UsageError: the images are of another shape or type.
    """
    normalize = BatchNormalize(mu, sigma, device, check_images(images))
    if resident and device.type != "cpu":
        on_device = torch.tensor(images, device=device)
        return lambda indices, epoch: normalize(on_device[indices])
    # Some at a time, so that images on the disk need not fit the memory.
    fetch = _fetcher(images, device, torch.from_numpy)

    def send(indices: Tensor, epoch: int, fetched: Tensor | None = None) -> Tensor:
        pixels = fetch(indices) if fetched is None else fetched
        return normalize(pixels.to(device, non_blocking=True))

    if not resident:
        send.fetch = fetch
    return send
