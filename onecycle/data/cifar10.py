"""CIFAR-10: its official files, or its images as pictures in folders."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from onecycle.data.dataset import CIFAR10_CLASSES as CIFAR10_CLASSES
from onecycle.data.dataset import IMAGE_SIZE_PX, ImageDataset, Images, Progress
from onecycle.data.download import (
    CIFAR10_ARCHIVE,
    CIFAR10_BYTES,
    CIFAR10_FOLDER,
    CIFAR10_SHA256,
    download_cifar10,
    unpack_cifar10,
)
from onecycle.data.folder import load_folder
from onecycle.data.pictures import is_picture_name, resize_images
from onecycle.errors import DataError
from onecycle.paths import kind_at


def load_cifar10(
    folder: str | os.PathLike, *, download: bool = False, progress: Progress | None = None,
    image_size: int = IMAGE_SIZE_PX, **options: Any,
) -> Images:  # fmt: skip
    """Training and test images from the official files, or from a folder of pictures.

    Args:
        folder: a folder with ``cifar-10-batches-py``, with ``cifar-10-python.tar.gz`` (which is
            unpacked there), or with pictures of CIFAR-10 or of your own classes, see
            :func:`load_folder`. The folder ``cifar-10-batches-py`` or the archive itself also
            works.
        download: download the archive (170 MB) into ``folder`` if none of these is there.
        progress: called while downloading, with bytes, and while decoding pictures, with their
            number.
        image_size: S, height and width of the images, in pixels.
        options: others of :func:`load_folder`, for pictures.

    Returns:
        Training and test images; their ``source`` is "CIFAR-10" for the official files.

    Raises:
        DataError: nothing is there and downloading is not allowed or failed, or the files are
            damaged.
        StorageError: ``folder`` cannot be written.
    """
    path = prepare_cifar10(folder, download=download, progress=progress)
    if not (path / CIFAR10_FOLDER).is_dir():
        return load_folder(path, progress=progress, image_size=image_size, **options)
    return tuple(Cifar10Dataset(path, train, image_size=image_size) for train in (True, False))


def holds_pictures(folder: str | os.PathLike, *, download: bool = False) -> bool:
    """Whether something else than CIFAR-10's official files is there: pictures, most likely.

    Args:
        folder: as of :func:`load_cifar10`.
        download: as of :func:`load_cifar10`.

    Raises:
        DataError: it cannot be read.
    """
    path = Path(folder)
    try:
        return _holds_pictures(path, download)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _holds_pictures(path: Path, download: bool) -> bool:
    if kind_at(path) == "file":
        return path.suffix.lower() == ".csv"
    official = (CIFAR10_FOLDER, CIFAR10_ARCHIVE)
    if path.name == CIFAR10_FOLDER or any((path / name).exists() for name in official):
        return False
    if not path.is_dir():
        return False
    if not download:
        return any(not name.startswith(".") for name in os.listdir(path))
    if (path / "train").is_dir() or (path / "test").is_dir():
        return True
    # Nothing is downloaded into class folders; a folder of other things may get CIFAR-10.
    with os.scandir(path) as entries:
        folders = [e.path for e in entries if e.is_dir() and os.access(e.path, os.R_OK | os.X_OK)]
    return sum(any(map(is_picture_name, os.listdir(folder))) for folder in folders) > 1


def prepare_cifar10(
    folder: str | os.PathLike, *, download: bool = False, progress: Progress | None = None
) -> Path:
    """Unpack or download the official files if they are needed.

    Args:
        folder: as of :func:`load_cifar10`.
        download: as of :func:`load_cifar10`.
        progress: called while downloading, with bytes.

    Returns:
        A folder with ``cifar-10-batches-py`` in it, or the folder of pictures as it was given.

    Raises:
        DataError: nothing is there and downloading is not allowed or failed, or the archive is
            not the official one.
        StorageError: ``folder`` cannot be written.
    """
    path = Path(folder)
    if holds_pictures(path, download=download):
        return path
    if path.name == CIFAR10_FOLDER and path.is_dir():
        return path.parent
    try:
        is_foreign = (
            path.is_file() and path.name != CIFAR10_ARCHIVE and not tarfile.is_tarfile(path)
        )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if is_foreign:
        raise DataError(
            f"{path} is no folder and no CSV file; give a folder with one folder per class "
            "(unpack an archive first), or a table of file and class saved as .csv"
        )
    archive = path if path.is_file() else path / CIFAR10_ARCHIVE
    if (archive.parent / CIFAR10_FOLDER).is_dir():
        return archive.parent
    if not archive.is_file():
        if not download:
            found = f"there is nothing in {path}" if path.is_dir() else f"{path} does not exist"
            raise DataError(
                f"{found}: give the folder of your pictures with --data-dir; for CIFAR-10 allow "
                f"the download (--download, or download=True), or put {CIFAR10_ARCHIVE} there "
                f"({CIFAR10_BYTES:,} bytes, SHA-256 {CIFAR10_SHA256})"
            )
        archive = download_cifar10(path, progress=progress)
    unpack_cifar10(archive)
    return archive.parent


class Cifar10Dataset(ImageDataset):
    """One split of CIFAR-10's official files, which torchvision verifies and reads.

    Args:
        root: the folder that holds ``cifar-10-batches-py``.
        train: the 50,000 training images; False: the 10,000 test images.
        transform: as of :class:`ImageDataset`.
        image_size: height and width of the images, in pixels.

    Raises:
        DataError: one of the official files is missing or damaged.
    """

    def __init__(
        self, root: str | os.PathLike, train: bool = True, transform: Callable | None = None,
        *, image_size: int = IMAGE_SIZE_PX,
    ) -> None:  # fmt: skip
        try:
            official = CIFAR10(str(root), train=train)
        except RuntimeError:  # it has verified all files, but does not say which is damaged
            _name_the_damaged(Path(root) / CIFAR10.base_folder)
            raise
        images = resize_images(official.data, image_size)
        super().__init__(images, official.targets, official.classes, "CIFAR-10", transform)


def _name_the_damaged(folder: Path) -> None:
    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
        if not check_integrity(str(folder / name), md5):
            raise DataError(
                f"{folder / name} is missing or damaged (expected MD5 {md5}); "
                f"remove {folder} and unpack the archive again"
            ) from None
