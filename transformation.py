"""The assignment's augmentation as albumentations pipelines, which take one image.

``get_train_batch_transform`` and ``get_test_batch_transform`` do the same for whole batches on the
device; they are in ``onecycle.data.batches`` and can be imported from here too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onecycle.data.augmentation import CUTOUT_SIZE_PX, padding_px, to_bytes
from onecycle.data.batches import get_test_batch_transform, get_train_batch_transform
from onecycle.data.dataset import CIFAR10_MEAN, CIFAR10_STD, IMAGE_SIZE_PX

if TYPE_CHECKING:
    import albumentations as A

__all__ = [
    "CIFAR10_MEAN", "CIFAR10_STD", "get_test_aug_transform", "get_test_batch_transform",
    "get_train_aug_transform", "get_train_batch_transform",
]  # fmt: skip


def get_train_aug_transform(
    mu: Sequence[float],
    sigma: Sequence[float],
    *,
    flip_probability: float = 0.5,
    size_px: int = IMAGE_SIZE_PX,
    padding: str = "reflect",
) -> A.Compose:
    """RandomCrop 32x32 after padding by 4 pixels, FlipLR, CutOut of one 8x8 hole, normalise.

    For images of another size, padding and hole keep their share of it.

    Every image gets a hole. It lies completely inside the image and is filled with the mean, so
    that it is 0 after normalisation.

    Args:
        mu: mean of each of the three channels, 0..1.
        sigma: standard deviation of each of the three channels, 0..1.
        flip_probability: 0..1; 0 if mirroring changes what an image shows, as with digits.
        size_px: S, height and width of the images.
        padding: "constant" for a black border, "reflect" for the image mirrored at its edge.

    Returns:
        A pipeline: ``pipeline(image=...)["image"]`` takes (S, S, 3) uint8 and gives
        (3, S, S) float32.

    Source:
        Padding and crop: He et al., "Deep Residual Learning" (2015), section 4.2. CutOut:
        DeVries and Taylor, "Improved Regularization of CNNs with Cutout" (2017).
    """
    A, ToTensorV2 = _albumentations()
    import cv2

    padded, hole = size_px + 2 * padding_px(size_px), CUTOUT_SIZE_PX * size_px // IMAGE_SIZE_PX
    return A.Compose(
        [
            A.PadIfNeeded(
                min_height=padded,
                min_width=padded,
                border_mode=cv2.BORDER_REFLECT_101 if padding == "reflect" else cv2.BORDER_CONSTANT,
                fill=0,
            ),
            A.RandomCrop(size_px, size_px),
            A.HorizontalFlip(p=flip_probability),
            A.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=(hole, hole),
                hole_width_range=(hole, hole),
                # Pixels are still 0..255 here: a mean in 0..1 would be black.
                fill=to_bytes(mu),
                p=1.0,
            ),
            A.Normalize(mean=tuple(mu), std=tuple(sigma)),
            ToTensorV2(),
        ]
    )


def get_test_aug_transform(mu: Sequence[float], sigma: Sequence[float]) -> A.Compose:
    """Normalise, and nothing else.

    Args:
        mu: mean of each of the three channels, 0..1.
        sigma: standard deviation of each of the three channels, 0..1.

    Returns:
        A pipeline: ``pipeline(image=...)["image"]`` takes (S, S, 3) uint8 and gives
        (3, S, S) float32.
    """
    A, ToTensorV2 = _albumentations()
    return A.Compose([A.Normalize(mean=tuple(mu), std=tuple(sigma)), ToTensorV2()])


def _albumentations():
    # Not at the top: the batched augmentation does not need it. It asks a server for its newest
    # version at import unless this is set before.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations
    from albumentations.pytorch import ToTensorV2

    return albumentations, ToTensorV2
