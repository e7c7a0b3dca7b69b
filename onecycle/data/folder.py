"""Pictures of any size and kind as 32x32 images, single ones and folders of them.

How a picture becomes an image: the first frame, rotated as its EXIF tag says, on a white background
if it has transparent parts, centre-cropped to the largest square, and resized with Pillow's bicubic
filter, which is antialiased. A picture that is already 32x32 keeps its pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from onecycle.data.dataset import (
    CIFAR10_CLASSES,
    IMAGE_SIZE_PX,
    ImageDataset,
    Images,
    Progress,
)
from onecycle.errors import DataError

BACKGROUND = (255, 255, 255)
MOST_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded; this many need up to 1 GB of memory."""

# Not all that Pillow knows: its EPS reader, for one, starts another program.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
CACHE_FILE = ".decoded-images.npz"
DECODING = "2"
"""Version of the decoding: increase it when the same picture gives other pixels."""


def read_picture(file: str | os.PathLike | bytes) -> np.ndarray:
    """A picture as a 32x32 RGB image.

    The first frame is taken, rotated as its EXIF tag says, put on white if it has transparent
    parts, centre-cropped to a square and resized (bicubic, antialiased).

    Args:
        file: a path, or the content of a file: JPEG, PNG, GIF, WEBP, BMP, TIFF or PPM. 16 bits
            per channel are scaled to 8; float and 32-bit integer pixels are refused.

    Returns:
        (32, 32, 3) uint8, RGB.

    Raises:
        DataError: it cannot be read, is not a picture, is damaged, or has over 100 megapixels.
    """
    name = "the picture" if isinstance(file, bytes) else str(file)
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with warnings.catch_warnings():
            # Warnings about Pillow's size limit, which ours replaces, and about odd metadata.
            warnings.simplefilter("ignore")
            with _open(stream) as picture:
                return np.asarray(_to_rgb(picture))
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not a picture of a known format; use {_KINDS}") from error
    except (Image.DecompressionBombError, _TooLarge) as error:
        raise DataError(
            f"{name} has too many pixels ({error}); the most is {MOST_PIXELS:,}, make it smaller"
        ) from error
    except Exception as error:  # decoders raise errors of many types on damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{name} cannot be read: {reason or type(error).__name__}") from error


_KINDS = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


class _TooLarge(Exception):
    pass


def _open(stream: str | os.PathLike | io.BytesIO) -> Image.Image:
    picture = Image.open(stream, formats=FORMATS)
    width, height = picture.size
    if width * height > MOST_PIXELS:
        picture.close()
        raise _TooLarge(f"{width} x {height}")
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as that is four times our size.
    picture.draft(None, (4 * IMAGE_SIZE_PX, 4 * IMAGE_SIZE_PX))
    is_16_bits = picture.format in ("PNG", "PPM")  # Pillow scales a PPM's to 16
    picture.load()
    picture = _upright(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and is_16_bits):
        # Pillow's own conversion clips 16 bits to white; 65535 / 257 is 255.
        values = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif picture.mode[0] in "IF":
        raise ValueError(f"mode {picture.mode} has no known range; save it with 8 or 16 bits")
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        picture = picture.convert("RGBA")
        opaque = Image.new("RGB", picture.size, BACKGROUND)
        opaque.paste(picture, mask=picture.getchannel("A"))
        picture = opaque
    picture = picture.convert("RGB")
    if picture.size == (IMAGE_SIZE_PX, IMAGE_SIZE_PX):
        return picture
    (width, height), side = picture.size, min(picture.size)
    left, top = (width - side) / 2, (height - side) / 2
    return picture.resize(
        (IMAGE_SIZE_PX, IMAGE_SIZE_PX),
        Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
    )


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # unreadable metadata does not affect the pixels
        turn = None
    return picture if turn is None else picture.transpose(turn)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation; 1 is upright."""


def load_folder(folder: str | os.PathLike, *, progress: Progress | None = None) -> Images:
    """Training and test images from pictures in ``train/CLASS/`` and ``test/CLASS/``.

    Every picture becomes 32x32 as :func:`read_picture` says. The decoded images are kept in one
    file in ``folder``, so that a second start decodes nothing. They are decoded again if a name,
    size or modification time has changed.

    Args:
        folder: the folder with ``train/`` and ``test/``, which have the same two or more class
            folders. Hidden files and files that are not pictures are ignored.
        progress: called while decoding, with the number of pictures.

    Returns:
        Training and test images, sorted by class and file name. Their ``source`` is
        "CIFAR-10 (image folder)" if the classes are CIFAR-10's, else "image folder".

    Raises:
        DataError: a folder is missing or empty, or a picture cannot be read.
    """
    folder = Path(folder)
    try:
        classes = _class_names(folder)
        files = {
            split: [(file, label) for label, name in enumerate(classes)
                    for file in _pictures(folder / split / name)]
            for split in ("train", "test")
        }  # fmt: skip
        fingerprint = _fingerprint(folder, files)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    labels = {
        split: np.array([label for _, label in entries], np.int64)
        for split, entries in files.items()
    }
    images = _read_cache(folder / CACHE_FILE, fingerprint, labels)
    if images is None:
        images = _decode(files, progress)
        _write_cache(folder / CACHE_FILE, fingerprint, images)
    source = "CIFAR-10 (image folder)" if classes == CIFAR10_CLASSES else "image folder"
    train, test = (
        ImageDataset(images[split], labels[split], classes, source) for split in ("train", "test")
    )
    return train, test


def what_to_move(folder: Path) -> str:
    """Advice for a folder whose class folders are not in ``train/`` and ``test/``; else empty."""
    if (folder / "train").is_dir():
        return "move some pictures of every class there"
    try:
        subfolders = sorted(entry for entry in folder.iterdir() if entry.is_dir())
        found = [f"{entry.name}/" for entry in subfolders if _picture_files(entry)]
    except OSError:
        return ""
    if len(found) < 2:
        return ""
    some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    return f"move {some} into train/ and then some pictures of each into test/CLASS/"


def _class_names(folder: Path) -> tuple[str, ...]:
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            expected = "pictures are expected in train/CLASS/ and test/CLASS/"
            advice = "; ".join(filter(None, (expected, what_to_move(folder))))
            raise DataError(f"{folder} has no folder {split}/: {advice}")
    names = {
        split: sorted(
            entry.name
            for entry in (folder / split).iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        for split in ("train", "test")
    }
    for name in names["train"]:
        try:
            name.encode()
        except UnicodeEncodeError:  # refused now, because results and figures could not hold it
            raise DataError(f"{folder}/train/{name!r}: the name is not UTF-8; rename it") from None
    if names["train"] != names["test"] or len(names["train"]) < 2:
        differing = sorted(set(names["train"]) ^ set(names["test"]))
        raise DataError(
            f"{folder}: train/ has {len(names['train'])} classes and test/ {len(names['test'])}"
            + (f", of which only one of them has {differing[:3]}" if differing else "")
            + "; both need the same two or more folders, one per class"
        )
    return tuple(names["train"])


def _pictures(folder: Path) -> list[Path]:
    files = _picture_files(folder)
    if not files:
        raise DataError(f"{folder} has no pictures; put {', '.join(SUFFIXES)} files there")
    return files


def _picture_files(folder: Path) -> list[Path]:
    return sorted(
        Path(entry.path)
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
    )


def _fingerprint(folder: Path, files: dict[str, list[tuple[Path, int]]]) -> str:
    digest = hashlib.sha256(DECODING.encode())
    for split in files.values():
        for file, _ in split:
            status = file.stat()
            digest.update(
                f"{file.relative_to(folder)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(
                    "utf-8", "surrogateescape"
                )
            )
    return digest.hexdigest()


def _decode(
    files: dict[str, list[tuple[Path, int]]], progress: Progress | None
) -> dict[str, np.ndarray]:
    total, done, images = sum(map(len, files.values())), 0, {}
    for split, entries in files.items():
        images[split] = np.empty((len(entries), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), np.uint8)
        for index, (file, _) in enumerate(entries):
            images[split][index] = read_picture(file)
            done += 1
            if progress is not None:
                progress(done, total)
    return images


def _read_cache(
    file: Path, fingerprint: str, labels: dict[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    try:
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != fingerprint:
                return None
            images = {split: stored[split] for split in labels}
    except Exception:  # missing, or damaged in any way: the pictures are decoded again
        return None
    for split, found in images.items():
        shape = (len(labels[split]), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
        if found.shape != shape or found.dtype != np.uint8:
            return None
    return images


def _write_cache(file: Path, fingerprint: str, images: dict[str, np.ndarray]) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as stream:
            np.savez(stream, fingerprint=np.array(fingerprint), **images)
        os.replace(part, file)
    except OSError as error:
        warnings.warn(f"the decoded images are not kept, {file}: {error.strerror}", stacklevel=3)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
