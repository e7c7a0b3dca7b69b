"""The data sets: images in memory with labels, class names and the name of their source.

Three sources, each chosen explicitly: CIFAR-10 from its official files, the same images as a
folder of pictures, and the handwritten digits that scikit-learn carries (offline).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from errors import DataError, UsageError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
IMAGE_SIZE_PX = 32
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
CACHE_FILE = ".decoded-images.npz"

Progress = Callable[[int, int], None]
"""Called with the images done and their total."""


class ImageDataset(Dataset):
    """Images in memory, each passed through a transform when it is read.

    Args:
        data: (N, 32, 32, 3) uint8 images.
        targets: (N,) class indices, 0..K-1.
        classes: the K class names.
        source: where the images come from, as figures and files name it.
        transform: an albumentations pipeline, or None for the image as it is.

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
        return ImageDataset(self.data[indices], self.targets[indices], self.classes, self.source)

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

    def with_transform(self, transform: Callable | None) -> ImageDataset:
        """The same images (not copied) through another transform."""
        return ImageDataset(self.data, self.targets, self.classes, self.source, transform)


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
        folder = Path(root) / CIFAR10.base_folder
        for name, md5 in [
            *CIFAR10.train_list,
            *CIFAR10.test_list,
            (CIFAR10.meta["filename"], CIFAR10.meta["md5"]),
        ]:
            if not check_integrity(str(folder / name), md5):
                raise DataError(
                    f"{folder / name} is missing or damaged (expected MD5 {md5}); "
                    f"remove {folder} and unpack the archive again"
                )
        official = CIFAR10(str(root), train=train)
        super().__init__(official.data, official.targets, official.classes, "CIFAR-10", transform)


def load_cifar10(
    data_dir: str | os.PathLike, *, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test images, from the official files or from an image folder.

    Args:
        data_dir: a folder with ``cifar-10-batches-py`` (see :class:`Cifar10Dataset`), or one
            with ``train/`` and ``test/`` (see :func:`load_image_folder`).
        progress: called while pictures are decoded.

    Raises:
        DataError: as those two say.
    """
    data_dir = Path(data_dir)
    if (data_dir / CIFAR10.base_folder).is_dir():
        return Cifar10Dataset(data_dir, train=True), Cifar10Dataset(data_dir, train=False)
    return load_image_folder(data_dir, progress=progress)


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


def load_image_folder(
    data_dir: str | os.PathLike, *, progress: Progress | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and test images from ``train/<class>/*`` and ``test/<class>/*``, jpg or png.

    The decoded images are kept in one file in ``data_dir``: a second start decodes none, and a
    folder in which a name, size or time of change differs is decoded again.

    Args:
        data_dir: the folder with ``train/`` and ``test/``; all images 32x32.
        progress: called while decoding, in images.

    Returns:
        Training and test set, in the order of class and file name; the source is "CIFAR-10
        (image folder)" where the classes are CIFAR-10's, else "image folder".

    Raises:
        DataError: a class is missing or empty, or a picture is unreadable or not 32x32.
    """
    data_dir = Path(data_dir)
    try:
        classes = _class_names(data_dir)
        files = {
            split: [(file, label) for label, name in enumerate(classes)
                    for file in _pictures(data_dir / split / name)]
            for split in ("train", "test")
        }  # fmt: skip
        fingerprint = _fingerprint(data_dir, files)
    except OSError as error:
        raise DataError(f"{error.filename or data_dir} cannot be read: {error.strerror}") from error
    arrays = _read_cache(data_dir / CACHE_FILE, fingerprint)
    if arrays is None:
        arrays = _decode(files, progress)
        _write_cache(data_dir / CACHE_FILE, fingerprint, arrays)
    source = "CIFAR-10 (image folder)" if classes == CIFAR10_CLASSES else "image folder"
    return tuple(
        ImageDataset(arrays[f"{split}_images"], arrays[f"{split}_labels"], classes, source)
        for split in ("train", "test")
    )


def _class_names(data_dir: Path) -> tuple[str, ...]:
    for split in ("train", "test"):
        if not (data_dir / split).is_dir():
            raise DataError(f"{data_dir} has no folder {split}/; a folder a class belongs there")
    names = {
        split: sorted(
            entry.name
            for entry in (data_dir / split).iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        for split in ("train", "test")
    }
    if names["train"] != names["test"] or len(names["train"]) < 2:
        differing = sorted(set(names["train"]) ^ set(names["test"]))
        raise DataError(
            f"{data_dir}: train/ has {len(names['train'])} classes and test/ {len(names['test'])}"
            + (f", of which only one of them has {differing[:3]}" if differing else "")
            + "; both need the same two or more folders, one a class"
        )
    return tuple(names["train"])


def _pictures(folder: Path) -> list[Path]:
    files = sorted(
        Path(entry.path)
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".")
    )
    if not files:
        raise DataError(f"{folder} holds no picture; put {', '.join(IMAGE_SUFFIXES)} files there")
    return files


def _fingerprint(data_dir: Path, files: dict[str, list[tuple[Path, int]]]) -> str:
    digest = hashlib.sha256()
    for split in files.values():
        for file, _ in split:
            status = file.stat()
            digest.update(
                f"{file.relative_to(data_dir)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(
                    "utf-8", "surrogateescape"
                )
            )
    return digest.hexdigest()


def _decode(files: dict[str, list[tuple[Path, int]]], progress: Progress | None) -> dict:
    total, done, arrays = sum(map(len, files.values())), 0, {}
    for split, entries in files.items():
        images = np.empty((len(entries), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), np.uint8)
        for index, (file, _) in enumerate(entries):
            try:
                with Image.open(file) as picture:
                    size = picture.size
                    if picture.mode[0] in "IF":  # Pillow would clip 16 bits to white
                        raise ValueError(f"mode {picture.mode}; save it with 8 bits a channel")
                    if size == (IMAGE_SIZE_PX, IMAGE_SIZE_PX):
                        images[index] = np.asarray(picture.convert("RGB"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"{file} is not a readable picture: {error}") from error
            if size != (IMAGE_SIZE_PX, IMAGE_SIZE_PX):
                raise DataError(
                    f"{file} has {size[0]}x{size[1]} pixels; resize it to "
                    f"{IMAGE_SIZE_PX}x{IMAGE_SIZE_PX}"
                )
            done += 1
            if progress is not None:
                progress(done, total)
        arrays[f"{split}_images"] = images
        arrays[f"{split}_labels"] = np.array([label for _, label in entries], np.int64)
    return arrays


def _read_cache(file: Path, fingerprint: str) -> dict | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != fingerprint:
                return None
            arrays = {name: stored[name] for name in stored.files if name != "fingerprint"}
            for split in ("train", "test"):  # whatever else it is, it must make a data set
                images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
                ImageDataset(images, labels, range(labels.max() + 1), str(file))
            return arrays
    except Exception:  # absent, or damaged in any way: decoding anew costs seconds and is right
        return None


def _write_cache(file: Path, fingerprint: str, arrays: dict) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as stream:
            np.savez(stream, fingerprint=np.array(fingerprint), **arrays)
        os.replace(part, file)
    except OSError as error:
        warnings.warn(f"the decoded images are not kept, {file}: {error.strerror}", stacklevel=4)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
