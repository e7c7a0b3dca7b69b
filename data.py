"""The data sets: images in memory with labels, class names and the name of their source.

Three sources, each chosen explicitly: CIFAR-10 from its official files, a folder of pictures of
the same or of own classes, and the handwritten digits that scikit-learn carries (offline).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from errors import DataError, UsageError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
IMAGE_SIZE_PX = 32


class ImageDataset(Dataset):
    """Images in memory, each passed through a transform when it is read.

    Args:
        data: (N, 32, 32, 3) uint8 images.
        targets: (N,) class indices, 0..K-1.
        classes: the K class names.
        source: where the images come from, as figures and files name it.
        transform: an albumentations pipeline, or None for the image as it is.
        indices: (N,) where each image is in the set that this one is a part of; None: 0..N-1.

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
    ) -> None:
        targets = np.asarray(targets, dtype=np.int64)
        shape = (len(targets), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
        if not len(targets) or data.shape != shape or data.dtype != np.uint8:
            raise DataError(
                f"{source}: found {data.dtype} images of shape {data.shape} with {len(targets)} "
                f"labels; expected uint8 of shape (N, {IMAGE_SIZE_PX}, {IMAGE_SIZE_PX}, 3), N labels"
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

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor | np.ndarray, int]:
        """The image after the transform, (3, 32, 32) float32 with ours, and its label."""
        image = self.data[index]
        if self.transform is not None:
            image = self.transform(image=image)["image"]
        return image, int(self.targets[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageDataset:
        """The images at ``indices``, in that order, without a transform."""
        indices = np.asarray(indices)
        return ImageDataset(
            self.data[indices], self.targets[indices], self.classes, self.source,
            indices=self.indices[indices],
        )  # fmt: skip

    def sample(self, count: int | None) -> ImageDataset:
        """``count`` images with the classes in their proportions, always the same; None: all.

        Raises:
            UsageError: there are fewer, or ``count`` is below 1.
        """
        if count is None:
            return self
        return self.subset(self._first(count, len(self)))

    def hold_out(self, count: int) -> tuple[ImageDataset, ImageDataset]:
        """The others, and ``count`` images with the classes in their proportions.

        The split is always the same, whatever the seed of a run.

        Raises:
            UsageError: ``count`` is below 1 or leaves nothing.
        """
        held_out = self._first(count, len(self) - 1)
        return self.subset(np.setdiff1d(np.arange(len(self)), held_out)), self.subset(held_out)

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
            self.data, self.targets, self.classes, self.source, transform, self.indices
        )


class Cifar10Dataset(ImageDataset):
    """torchvision's CIFAR10 through an albumentations pipeline.

    Args:
        root: the folder that holds ``cifar-10-batches-py``.
        train: the 50,000 training images, or the 10,000 test images.
        transform: an albumentations pipeline, or None for the image as it is.

    Raises:
        DataError: one of the official files is missing or damaged.
    """

    def __init__(
        self, root: str | os.PathLike, train: bool = True, transform: Callable | None = None
    ) -> None:
        try:
            official = CIFAR10(str(root), train=train)
        except RuntimeError:  # it has verified all files, but does not say which is damaged
            _name_the_damaged(Path(root) / CIFAR10.base_folder)
            raise
        super().__init__(official.data, official.targets, official.classes, "CIFAR-10", transform)


def _name_the_damaged(folder: Path) -> None:
    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
        if not check_integrity(str(folder / name), md5):
            raise DataError(
                f"{folder / name} is missing or damaged (expected MD5 {md5}); "
                f"remove {folder} and unpack the archive again"
            ) from None


def load_cifar10(
    data_dir: str | os.PathLike,
    *,
    load_folder: Callable | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test images, from the official files or from an image folder.

    Args:
        data_dir: a folder with ``cifar-10-batches-py`` (see :class:`Cifar10Dataset`), or one
            with pictures in ``train/<class>/`` and ``test/<class>/``, of CIFAR-10 or of own classes.
        load_folder: ``pictures.load_image_folder``, which reads the latter.
        progress: called with the pictures decoded and their total.

    Returns:
        The source of an image folder is "CIFAR-10 (image folder)" where the classes are
        CIFAR-10's, else "image folder".

    Raises:
        DataError: as those two say, or neither is there.
    """
    data_dir = Path(data_dir)
    if (data_dir / CIFAR10.base_folder).is_dir():
        return Cifar10Dataset(data_dir, train=True), Cifar10Dataset(data_dir, train=False)
    if load_folder is None:
        raise DataError(
            f"{data_dir} has no {CIFAR10.base_folder}/; where it holds pictures in train/ and "
            "test/, give load_folder=pictures.load_image_folder"
        )
    return tuple(
        ImageDataset(
            images,
            targets,
            classes,
            "CIFAR-10 (image folder)" if classes == CIFAR10_CLASSES else "image folder",
        )
        for images, targets, classes in load_folder(data_dir, progress=progress)
    )


def load_digits(num_test: int = 360) -> tuple[ImageDataset, ImageDataset]:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8x8 grey to 32x32 RGB. Offline.

    Args:
        num_test: how many make the test set, the classes in their proportions.

    Source:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits" (1998), test part.
    """
    from sklearn import datasets  # here, so that CIFAR-10 does without it

    digits = datasets.load_digits()
    grey = torch.from_numpy(digits.images * (255 / 16)).float().unsqueeze(1)
    large = torch.nn.functional.interpolate(
        grey, size=(IMAGE_SIZE_PX, IMAGE_SIZE_PX), mode="bilinear"
    )
    images = large.round().to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 1, 1, 3).numpy()
    everything = ImageDataset(images, digits.target, [str(k) for k in range(10)], "digits")
    return everything.hold_out(num_test)


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
