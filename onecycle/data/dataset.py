"""Images in memory with their labels, class names and source."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset

from onecycle.errors import DataError, UsageError

IMAGE_SIZE_PX = 32
"""Height and width of the images of CIFAR-10, of the digits, and of decoded pictures."""

SMALLEST_SIZE_PX = 8

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of each channel over the 50,000 training images, 0..1."""

CIFAR10_STD = (0.2470, 0.2435, 0.2616)
"""Standard deviation of each channel over all pixels of the training images, 0..1."""

HELD_OUT = "held-out training images"
"""What images are called that were split off the training images to evaluate on."""

Progress = Callable[[int, int], None]
"""Called with the number done and the total: bytes of a download, or decoded pictures."""


class ImageDataset(Dataset):
    """Images in memory; reading one passes it through the transform.

    Args:
        data: (N, S, S, 3) uint8 images, S pixels of 8 or more. Grey ones, (N, S, S) or
            (N, S, S, 1), get three equal channels.
        targets: (N,) class indices, 0..K-1.
        classes: the K class names.
        source: where the images come from; figures and files show it.
        transform: an albumentations pipeline, or any callable that takes one (S, S, 3) uint8
            image, such as a torchvision transform; None leaves the images as they are.
        indices: (N,) index of each image in the data set that this one is a part of; None is
            0..N-1.
        name: what the images are called when a model is evaluated on them.
        files: the N names of the pictures' files, which tables of errors show; None: no files.
        notes: what is to be said of how they were read, a line each.
        skipped: pictures that were left out, a line each.
        stats: mean and standard deviation of each channel to normalise with, 0..1; None: theirs.

    Attributes:
        indices: (N,) as above.

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
        files: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        skipped: Sequence[str] = (),
        stats: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        data = data if isinstance(data, np.ndarray) else np.asarray(data)  # a mapped one stays so
        targets = _as_indices(targets, source)
        if isinstance(classes, int):
            raise DataError(f"{source}: classes are {classes!r}; give their names, ('cat', 'dog')")
        if data.dtype == np.uint8 and (data.ndim == 3 or data.shape[3:] == (1,)):
            data = np.repeat(data.reshape(*data.shape[:3], 1), 3, axis=3)
        is_whole = data.shape[:1] == targets.shape and len(targets) > 0
        if not is_whole or data.dtype != np.uint8 or not is_square(data.shape):
            raise DataError(
                f"{source}: found {data.dtype} images of shape {data.shape} with {len(targets)} "
                f"labels; expected uint8 of shape (N, {IMAGE_SIZE_PX}, {IMAGE_SIZE_PX}, 3), or "
                f"another square of {SMALLEST_SIZE_PX} pixels or more, and N labels"
                f"{_way_to_uint8(data)}"
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
        self.files = None if files is None else tuple(files)
        self.notes, self.skipped = tuple(notes), tuple(skipped)
        self._given_stats = stats

    @property
    def size_px(self) -> int:
        """Height and width of an image."""
        return self.data.shape[1]

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, 0..1: CIFAR-10's published one, or that of these images."""
        return self._stats[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, 0..1: CIFAR-10's published one, or that of these."""
        return self._stats[1]

    @cached_property
    def _stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self._given_stats is not None:
            return tuple(map(tuple, self._given_stats))
        if self.source.startswith("CIFAR-10"):
            return CIFAR10_MEAN, CIFAR10_STD
        return get_stats(self.data)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor | np.ndarray, int]:
        """The image after the transform, (3, S, S) float32 with our pipelines, and its label."""
        image = self.data[index]
        if self.transform is not None:
            # albumentations, known by the seeding that the loader needs, takes keywords alone.
            is_pipeline = hasattr(self.transform, "set_random_state")
            image = self.transform(image=image) if is_pipeline else self.transform(image)
            if isinstance(image, dict):
                image = image["image"]
        return image, int(self.targets[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageDataset:
        """The images at ``indices``, in that order, without a transform."""
        indices = np.asarray(indices)
        return self._changed(
            data=self.data[indices], targets=self.targets[indices], transform=None,
            indices=self.indices[indices],
            files=None if self.files is None else [self.files[i] for i in indices],
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
        """Split off ``count`` images to evaluate on, with the classes in their proportions.

        The split is always the same and does not depend on the seed of a run.

        Returns:
            The remaining images, and the ``count`` "held-out training images".

        Raises:
            UsageError: ``count`` is below 1 or leaves no images to train on.
        """
        held_out = self._first(count, len(self) - 1)
        rest = self.subset(np.setdiff1d(np.arange(len(self)), held_out))
        part = self.subset(held_out)
        part.name = HELD_OUT
        return rest, part

    def _first(self, count: int, most: int) -> np.ndarray:
        if not 1 <= count <= most:
            raise UsageError(f"{count} of {len(self):,} images; it must be from 1 to {most:,}")
        return stratified_order(self.targets)[:count]

    def digest(self) -> str:
        """SHA-256 of images and labels, in hexadecimal."""
        found = hashlib.sha256(np.ascontiguousarray(self.data))
        found.update(self.targets)
        return found.hexdigest()

    def with_transform(self, transform: Callable | None) -> ImageDataset:
        """The same images (not copied) with another transform."""
        return self._changed(transform=transform)

    def with_stats(self, mean: Sequence[float], std: Sequence[float]) -> ImageDataset:
        """The same images (not copied), normalised with another mean and standard deviation."""
        return self._changed(stats=(mean, std))

    def _changed(self, **changes) -> ImageDataset:
        own = {
            "data": self.data, "targets": self.targets, "classes": self.classes,
            "source": self.source, "transform": self.transform, "indices": self.indices,
            "name": self.name, "files": self.files, "notes": self.notes,
            "skipped": self.skipped, "stats": self._given_stats,
        }  # fmt: skip
        return ImageDataset(**own | changes)


Images = tuple[ImageDataset, ImageDataset]
"""The images to train on, and those to evaluate on."""


def _way_to_uint8(data: np.ndarray) -> str:
    """What to do with images of another type or order of axes, if that is known."""
    if data.ndim == 4 and data.shape[1] == 3 != data.shape[3]:
        return "; give data.transpose(0, 2, 3, 1)"
    if data.dtype == np.uint16:
        bits = max(8, int(data.max(initial=0)).bit_length())
        return f"; the values need {bits} bits, give (data >> {bits - 8}).astype('uint8')"
    if data.dtype.kind == "f":
        return "; of values 0..1, give (255 * data).round().astype('uint8')"
    return ""


def _as_indices(targets: Sequence[int] | np.ndarray, source: str) -> np.ndarray:
    try:
        given = np.asarray(targets)
        indices = given.astype(np.int64)
        if given.dtype.kind in "iub" or np.array_equal(given, indices):
            return indices
    except (TypeError, ValueError):  # words, or lists of several lengths
        pass
    first = next(iter(targets), None)
    raise DataError(
        f"{source}: labels are not whole numbers, such as {first!r:.60}; give the index of each "
        "image's class, 0..K-1"
    )


def is_square(shape: tuple[int, ...]) -> bool:
    """Whether a shape is (N, S, S, 3) with S of ``SMALLEST_SIZE_PX`` or more."""
    return len(shape) == 4 and shape[1:] == (shape[1], shape[1], 3) and shape[1] >= SMALLEST_SIZE_PX


def stratified_order(targets: np.ndarray, seed: int = 0) -> np.ndarray:
    """A shuffled order whose first n images have the classes in their proportions, for any n.

    Args:
        targets: (N,) class indices.
        seed: of the order.

    Returns:
        (N,) indices, each once. The first n contain each class in proportion, to within a few.
    """
    rng = np.random.default_rng(seed)
    shuffled, place = rng.permutation(len(targets)), np.empty(len(targets))
    labels = rng.permutation(np.unique(targets))
    for turn, label in enumerate(labels):  # spread each class evenly over the order
        members = shuffled[targets[shuffled] == label]
        place[members] = (np.arange(len(members)) + (turn + 0.5) / len(labels)) / len(members)
    return np.argsort(place, kind="stable")


def get_stats(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels.

    Args:
        images: (N, H, W, 3) uint8; or grey ones, (N, H, W) or (N, H, W, 1).

    Returns:
        Mean and standard deviation, three values each, 0..1. A deviation is at least 1/255,
        because images are divided by it.

    Raises:
        DataError: the images are of another shape or type.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"found {images.dtype} images of shape {images.shape}; expected uint8 of shape "
            f"(N, H, W, 3), (N, H, W, 1) or (N, H, W){_way_to_uint8(images)}"
        )
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    # From histograms: exact, and without a float copy of all images.
    levels, counts = np.arange(256) / 255, np.zeros((3, 256), np.int64)
    for part in np.array_split(images, len(images) // 4096 + 1):
        counts += [np.bincount(part[..., c].ravel(), minlength=256) for c in range(3)]
    shares = counts / counts.sum(1, keepdims=True)
    means = [share @ levels for share in shares]
    stds = [math.sqrt(share @ (levels - mean) ** 2) for share, mean in zip(shares, means)]
    return tuple(map(float, means)), tuple(max(std, 1 / 255) for std in stds)
