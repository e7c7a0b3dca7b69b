"""Mixup and CutMix: pairs of images of a batch become one image with two labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_STREAM = 1
"""Keeps the draws apart from those of the loaders, which have fewer words in their key."""


@dataclass(frozen=True, slots=True)
class Mixing:
    """Mixes each image of a batch with another one, a function of (seed, epoch, batch) alone.

    The partners are the same batch in reverse order. A batch has one share, and with CutMix one
    rectangle, as in timm and torchvision. In a group of processes all have the same share and
    rectangle, and each mixes its own images.

    Args:
        mixup: alpha of Mixup's Beta(alpha, alpha) distribution, 0 or more; 0: no Mixup.
        cutmix: alpha of CutMix's, 0 or more; 0: no CutMix. With both, each batch takes one of the
            two at random.
        seed: 0 or more.

    Source:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2017); Yun et al., "CutMix:
        Regularization Strategy to Train Strong Classifiers with Localizable Features" (2019).
    """

    mixup: float
    cutmix: float
    seed: int = 0

    def __call__(
        self, images: Tensor, labels: Tensor, epoch: int, batch: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A mixed batch.

        Args:
            images: (n, C, H, W) float; they stay as they are.
            labels: (n,) class indices or (n, K) probabilities.
            epoch: 0 or more.
            batch: its number in the epoch, from 0.

        Returns:
            The mixed images, a new tensor; the labels with the larger share of each image; those
            with the smaller share; and the larger share, () float32, 0.5..1, on the device.
        """
        rng = np.random.default_rng([self.seed, epoch, batch, _STREAM])
        is_cut = rng.random() < 0.5 if self.mixup and self.cutmix else self.cutmix > 0
        share = float(rng.beta(*2 * [self.cutmix if is_cut else self.mixup]))
        if is_cut:
            images, share = _cut(images, share, rng)
        else:
            images = torch.lerp(images, images.flip(0), 1 - share)
        first, second = labels, labels.flip(0)
        if share < 0.5:
            first, second, share = second, first, 1 - share
        # Filled on the device: a copy of a number would make a GPU wait.
        return images, first, second, torch.full((), share, device=images.device)


def _cut(images: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """The images with a rectangle of their partners, and the share that is their own."""
    place = []
    for size in images.shape[2:]:
        side = round(size * (1 - share) ** 0.5)
        begin = int(rng.integers(size)) - side // 2  # round a pixel of the image, cut at its border
        place.append(slice(max(begin, 0), min(begin + side, size)))
    mixed = images.clone()
    mixed[..., *place] = images[..., *place].flip(0)
    return mixed, 1 - mixed[0, 0, *place].numel() / mixed[0, 0].numel()
