"""Pictures of any size and kind as the 32x32 images that the network takes; folders of them.

How a picture becomes an image: its first frame, turned as its EXIF tag says, transparent parts over
white, the largest square in its middle, resized with Pillow's bicubic filter, which is antialiased.
One that is 32x32 already keeps its pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from onecycle.data.dataset import CIFAR10_CLASSES, IMAGE_SIZE_PX, ImageDataset, Images
from onecycle.errors import DataError

BACKGROUND = (255, 255, 255)
MOST_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded; this one needs up to 1 GB of memory."""

# Not all that Pillow knows: its EPS reader, for one, starts another program.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
CACHE_FILE = ".decoded-images.npz"
DECODING = "2"
"""Goes up when a picture becomes other pixels, so that images kept before are decoded again."""

Progress = Callable[[int, int], None]
"""Called with the images done and their total."""


def read_picture(file: str | os.PathLike | bytes) -> np.ndarray:
    """A picture as an image for the network; the top of this module says how it becomes one.

    Args:
        file: a path, or the content of a file. Any format of ``FORMATS``, any mode but numbers
            without a known range (float, 32-bit integer); 16 bits a channel are scaled to 8.

    Returns:
        (32, 32, 3) uint8, RGB.

    Raises:
        DataError: it cannot be read, is no picture, is damaged, or has over ``MOST_PIXELS``.
    """
    name = "the picture" if isinstance(file, bytes) else str(file)
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with warnings.catch_warnings():
            # Of a limit that ours replaces, and of odd metadata, which spoil no pixel.
            warnings.simplefilter("ignore")
            with _open(stream) as picture:
                return np.asarray(_to_rgb(picture))
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is no picture of a known kind; give {_KINDS}") from error
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
    # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where four times ours is left.
    picture.draft(None, (4 * IMAGE_SIZE_PX, 4 * IMAGE_SIZE_PX))
    is_16_bits = picture.format in ("PNG", "PPM")  # a PPM's are scaled to all 16 by Pillow
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
    except Exception:  # metadata that cannot be read spoils no pixel
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
"""What undoes each orientation of EXIF; 1 is upright."""


def load_folder(folder: str | os.PathLike, *, progress: Progress | None = None) -> Images:
    """Images from the pictures in ``train/<class>/*`` and ``test/<class>/*``, of two classes or more.

    Every picture becomes 32x32 as :func:`read_picture` says. The decoded images are kept in one
    file in ``folder``: a second start decodes none, and a folder in which a name, size or time of
    change differs is decoded again.

    Args:
        folder: with ``train/`` and ``test/``. Hidden files and those of other kinds than
            ``SUFFIXES`` are passed over.
        progress: called while decoding, in images.

    Returns:
        Training and test images, in the order of class and file name. Their source is "CIFAR-10
        (image folder)" if the classes are CIFAR-10's, else "image folder".

    Raises:
        DataError: a part or class is missing or empty, or a picture cannot be read.
    """
    data_dir = Path(folder)
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
    labels = {
        split: np.array([label for _, label in entries], np.int64)
        for split, entries in files.items()
    }
    images = _read_cache(data_dir / CACHE_FILE, fingerprint, labels)
    if images is None:
        images = _decode(files, progress)
        _write_cache(data_dir / CACHE_FILE, fingerprint, images)
    source = "CIFAR-10 (image folder)" if classes == CIFAR10_CLASSES else "image folder"
    train, test = (
        ImageDataset(images[split], labels[split], classes, source) for split in ("train", "test")
    )
    return train, test


def _class_names(data_dir: Path) -> tuple[str, ...]:
    for split, advice in (("train", ""), ("test", "; move some pictures of every class there")):
        if not (data_dir / split).is_dir():
            raise DataError(
                f"{data_dir} has no folder {split}/; it needs train/ and test/, each with a folder "
                f"a class{advice}"
            )
    names = {
        split: sorted(
            entry.name
            for entry in (data_dir / split).iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        for split in ("train", "test")
    }
    for name in names["train"]:
        try:
            name.encode()
        except UnicodeEncodeError:  # it would go into results and figures, after the training
            raise DataError(
                f"{data_dir}/train/{name!r}: the name is not UTF-8; rename it"
            ) from None
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
        if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
    )
    if not files:
        raise DataError(f"{folder} holds no picture; put {', '.join(SUFFIXES)} files there")
    return files


def _fingerprint(data_dir: Path, files: dict[str, list[tuple[Path, int]]]) -> str:
    digest = hashlib.sha256(DECODING.encode())
    for split in files.values():
        for file, _ in split:
            status = file.stat()
            digest.update(
                f"{file.relative_to(data_dir)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(
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
    except Exception:  # absent, or damaged in any way: decoding anew costs seconds and is right
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
