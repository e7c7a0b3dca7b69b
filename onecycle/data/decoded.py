"""Decoded pictures, kept in the user's cache folder as an array that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onecycle.data.dataset import Progress
from onecycle.data.pictures import DECODING, kinds, read_quietly, without_warnings
from onecycle.errors import DataError
from onecycle.files import open_regular, read_regular
from onecycle.paths import drop_parts, part_of, remove
from onecycle.schema import parse_json

AT_ONCE = 256
"""Pictures that are decoded before they are written."""


def cache_folder() -> Path:
    """Where decoded pictures are kept: ``onecycle`` in the user's cache folder."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "onecycle"


def decode(
    files: Sequence[Path],
    size_px: int,
    resize: str,
    *,
    cache_dir: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """The pictures as images of one size, from the cache if none of them has changed.

    Args:
        files: N pictures.
        size_px: S, height and width of the images.
        resize: as of :func:`read_picture`.
        cache_dir: where they are kept; None: :func:`cache_folder`.
        progress: called while decoding, with the number of pictures.

    Returns:
        (N, S, S, 3) uint8, black where a picture cannot be read; and why, by its number.

    Raises:
        OSError: a file is gone.
    """
    folder = Path(cache_dir) if cache_dir is not None else cache_folder()
    # One name for the same pictures at the same size: what has changed replaces what was kept.
    common = os.path.commonpath([file.absolute() for file in files])
    name = _digest(f"{common}\0{size_px}\0{resize}")[:20]
    kept, state = folder / f"{name}.npy", _state(files)
    shape = (len(files), size_px, size_px, 3)
    found = _read(kept, state, shape)
    if found is not None:
        return found
    unreadable: dict[int, str] = {}
    passing: set[int] = set()
    images = _decoded(files, size_px, resize, unreadable, progress, passing)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drop_parts(folder)
        part = part_of(kept)
        try:
            with open(part, "wb") as stream:
                checksum = _write(stream, images, shape)
            kept.with_suffix(".json").unlink(missing_ok=True)
            os.replace(part, kept)
            about = {"state": state, "checksum": checksum, "unreadable": unreadable}
            if not passing:  # else the pictures are tried again at the next start
                kept.with_suffix(".json").write_text(json.dumps(about), "utf-8")
        finally:
            remove(part)
    except OSError as error:
        warnings.warn(
            f"the decoded images are not kept in {folder}: {error.strerror}; name another folder "
            "with cache_dir (--cache-dir)",
            stacklevel=4,
        )
        unreadable = {}
        images = _decoded(files, size_px, resize, unreadable, progress, passing)
        return np.concatenate(list(images)), unreadable
    return np.load(kept, mmap_mode="r"), unreadable


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _state(files: Sequence[Path]) -> str:
    """A digest of names, sizes and times, which changes with the pictures."""
    lines = [DECODING]
    for file in files:
        try:
            status = file.stat()
            lines.append(f"{file.absolute()}\0{status.st_size}\0{status.st_mtime_ns}")
        except OSError as error:  # decoding says it
            lines.append(f"{file.absolute()}\0{error.strerror}")
    return _digest("\n".join(lines))


def _read(kept: Path, state: str, shape: tuple) -> tuple[np.ndarray, dict[int, str]] | None:
    try:
        about = parse_json(read_regular(kept.with_suffix(".json")))
        with open_regular(kept, most=sys.maxsize):  # a pipe would wait for ever
            images = np.load(kept, mmap_mode="r", allow_pickle=False)
        is_same = about["state"] == state and about["checksum"] == _checksum(images)
        if not is_same or images.shape != shape or images.dtype != np.uint8:
            return None
        return images, {int(number): why for number, why in about["unreadable"].items()}
    except Exception:  # missing, or damaged in any way: the pictures are decoded again
        return None


def _decoded(
    files: Sequence[Path],
    size_px: int,
    resize: str,
    unreadable: dict[int, str],
    progress: Progress | None,
    passing: set[int],
) -> Iterator[np.ndarray]:
    """The images in parts; what cannot be read is added to ``unreadable``.

    What the system refused, not the content, may be readable the next time: it is in ``passing``.
    """

    def read(number: int) -> np.ndarray:
        try:
            return read_quietly(files[number], size_px, resize)
        except DataError as error:
            if getattr(error.__cause__, "errno", None) is not None:
                passing.add(number)
            unreadable[number] = str(error).removeprefix(f"{files[number]} ")
            return np.zeros((size_px, size_px, 3), np.uint8)

    kinds()  # loads Pillow's readers before there are threads
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the interpreter
        for start in range(0, len(files), AT_ONCE):
            numbers, part = range(start, min(start + AT_ONCE, len(files))), []
            with without_warnings():
                for number, image in zip(numbers, pool.map(read, numbers), strict=True):
                    part.append(image)
                    if progress is not None:
                        progress(number + 1, len(files))
            yield np.stack(part)


def _write(stream: BinaryIO, images: Iterator[np.ndarray], shape: tuple) -> int:
    """Write an array's file; the checksum of its values."""
    # Written, not mapped: a disk that fills would end the process.
    header, checksum = {"descr": "|u1", "fortran_order": False, "shape": shape}, 0
    np.lib.format.write_array_header_1_0(stream, header)
    for part in images:
        stream.write(part)
        checksum = zlib.crc32(part, checksum)
    stream.flush()
    os.fsync(stream.fileno())
    return checksum


def _checksum(images: np.ndarray) -> int:
    checksum = 0
    for start in range(0, len(images), AT_ONCE):
        checksum = zlib.crc32(images[start : start + AT_ONCE], checksum)
    return checksum
