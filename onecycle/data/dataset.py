"""The data sets: images in memory with labels, class names and the name of their source.

Three sources, each chosen explicitly: CIFAR-10 from its official files, a folder of pictures of
the same or of own classes, and the handwritten digits that scikit-learn carries (offline).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from onecycle.errors import DataError, UsageError

IMAGE_SIZE_PX = 32
"""Side of CIFAR-10's images; pictures and digits are made of this size."""
LEAST_SIZE_PX = 8
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of each channel over CIFAR-10's 50,000 training images, 0..1."""
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
"""Standard deviation of each channel over all pixels of these images, 0..1."""


class ImageDataset(Dataset):
    """Square images in memory with their labels; a transform is applied when one is read.

    Args:
        data: (N, S, S, 3) uint8 images, S at least 8 pixels.
        targets: (N,) class indices, 0..K-1.
        classes: the K class names.
        source: where the images come from, as figures and files name it.
        transform: of one image, an albumentations pipeline or a function of a (S, S, 3) uint8
            array; None: the image as it is.
        indices: (N,) where each image is in the set that this one is a part of; None: 0..N-1.
        name: what the images are called where they are evaluated on.

    Raises:
        DataError: the arrays are empty, of another shape or type, or a label is out of range.
    """

    def __init__(
        self,
        data: np.ndarray,
        targets: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        source: str,
        transform: Callable | None = None,
        indices: np.ndarray | None = None,
        *,
        name: str = "test images",
    ) -> None:
        targets = np.asarray(targets, dtype=np.int64)
        size = data.shape[1] if data.ndim == 4 else 0
        shape = (len(targets), size, size, 3)
        if not len(targets) or size < LEAST_SIZE_PX or data.shape != shape or data.dtype != np.uint8:
            raise DataError(
                f"{source}: found {data.dtype} images of shape {data.shape} with {len(targets)} "
                f"labels; expected uint8 of shape (N, S, S, 3) with S of {LEAST_SIZE_PX} or more, "
                "and N labels"
            )
        wrong = np.flatnonzero((targets < 0) | (targets >= len(classes)))
        if len(wrong):
            raise DataError(
                f"{source}: image {wrong[0]} has label {targets[wrong[0]]}; "
                f"labels are 0..{len(classes) - 1}"
            )
        self.data = data
        self.targets = targets
        self.classes = tuple(classes)
        self.source = source
        self.transform = transform
        self.indices = np.arange(len(targets)) if indices is None else indices
        self.name = name

    @property
    def size_px(self) -> int:
        """Side of an image."""
        return self.data.shape[1]

    @functools.cached_property
    def _stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.source.startswith("CIFAR-10"):
            return CIFAR10_MEAN, CIFAR10_STD
        return get_stats(self.data)

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, 0..1: CIFAR-10's published one for CIFAR-10, else the images' own."""
        return self._stats[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, 0..1, as ``mean``."""
        return self._stats[1]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor | np.ndarray, int]:
        """The image after the transform, and its label."""
        image = self.data[index]
        if hasattr(self.transform, "set_random_state"):  # an albumentations pipeline
            image = self.transform(image=image)["image"]
        elif self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageDataset:
        """The images at ``indices``, in that order, without a transform."""
        indices = np.asarray(indices)
        return ImageDataset(
            self.data[indices], self.targets[indices], self.classes, self.source,
            indices=self.indices[indices], name=self.name,
        )  # fmt: skip

    def sample(self, count: int | None) -> ImageDataset:
        """``count`` images with the classes in their proportions, always the same; None: all.

        Raises:
            UsageError: there are fewer, or ``count`` is below 1.
        """
        if count is None:
            return self
        return self.subset(self._first(count, len(self)))

    def hold_out(self, count: int) -> Images:
        """The others, and ``count`` images with the classes in their proportions.

        The split is always the same, whatever the seed of a run.

        Raises:
            UsageError: ``count`` is below 1 or leaves nothing.
        """
        held_out = self._first(count, len(self) - 1)
        rest, held = self.subset(np.setdiff1d(np.arange(len(self)), held_out)), self.subset(held_out)
        held.name = "held-out training images"
        return rest, held

    def _first(self, count: int, most: int) -> np.ndarray:
        if not 1 <= count <= most:
            raise UsageError(f"{count} of {len(self):,} images; it must be from 1 to {most:,}")
        return stratified_order(self.targets)[:count]

    def digest(self) -> str:
        """SHA-256 of images and labels: other data, another text."""
        found = hashlib.sha256(np.ascontiguousarray(self.data))
        found.update(self.targets)
        return found.hexdigest()

    def with_transform(self, transform: Callable | None) -> ImageDataset:
        """The same images (not copied) through another transform."""
        return ImageDataset(
            self.data, self.targets, self.classes, self.source, transform, self.indices,
            name=self.name,
        )  # fmt: skip


Images = tuple[ImageDataset, ImageDataset]
"""Images to train on, and images to evaluate on."""


def stratified_order(targets: np.ndarray, seed: int = 0) -> np.ndarray:
    """A shuffled order in which every beginning holds the classes in their proportions.

    Args:
        targets: (N,) class indices.
        seed: another seed, another order.

    Returns:
        (N,) indices, each once. Of each class, the first n hold its share of n to within a few.
    """
    rng = np.random.default_rng(seed)
    shuffled, place = rng.permutation(len(targets)), np.empty(len(targets))
    labels = rng.permutation(np.unique(targets))
    for turn, label in enumerate(labels):  # the classes take turns, evenly spread over the order
        members = shuffled[targets[shuffled] == label]
        place[members] = (np.arange(len(members)) + (turn + 0.5) / len(labels)) / len(members)
    return np.argsort(place, kind="stable")


def get_stats(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels.

    Args:
        images: (N, H, W, 3) uint8.

    Returns:
        Two triples, 0..1; a deviation is 1/255 at least, because images are divided by it.
    """
    # From histograms: exact, and without a wider copy of all images at once.
    levels, counts = np.arange(256) / 255, np.zeros((3, 256), np.int64)
    for part in np.array_split(images, len(images) // 4096 + 1):
        counts += [np.bincount(part[..., c].ravel(), minlength=256) for c in range(3)]
    shares = counts / counts.sum(1, keepdims=True)
    means = [share @ levels for share in shares]
    stds = [math.sqrt(share @ (levels - mean) ** 2) for share, mean in zip(shares, means)]
    return tuple(map(float, means)), tuple(max(std, 1 / 255) for std in stds)
