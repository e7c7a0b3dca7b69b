"""One picture file of any size and kind as a square RGB image.

How a picture becomes an image: the first frame, rotated as its EXIF tag says, on a white
background if it has transparent parts, cut to the largest square in its middle or padded to a
square, and resized with Pillow's bicubic filter, which is antialiased. A picture that already has
the size keeps its pixels.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from onecycle.data.dataset import IMAGE_SIZE_PX
from onecycle.errors import DataError

BACKGROUND = (255, 255, 255)
BORDER = (0, 0, 0)
MOST_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded; this many need up to 1 GB of memory."""

# EPS starts another program, WMF asks Windows to draw, and the others are measurements or films.
NOT_READ = {"EPS", "WMF", "BUFR", "FITS", "GRIB", "HDF5", "IPTC", "MCIDAS", "MPEG"}
DECODING = "3"
"""Version of the decoding: increase it when the same picture gives other pixels."""


@functools.cache
def kinds() -> dict[str, str]:
    """Format by suffix, of each kind of picture that is read, such as {".jpg": "JPEG"}."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return {
        suffix: kind
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in NOT_READ
    }


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends as that of a picture does."""
    return os.path.splitext(name)[1].lower() in kinds()


def read_picture(
    file: str | os.PathLike | bytes | Image.Image,
    size_px: int = IMAGE_SIZE_PX,
    *,
    resize: str = "crop",
) -> np.ndarray:
    """A picture as a square RGB image.

    The first frame is taken, rotated as its EXIF tag says, put on white if it has transparent
    parts, made square, and resized (bicubic, antialiased).

    Args:
        file: a path, the content of a file, or an opened picture, of any kind that Pillow reads;
            HEIC if the package pillow-heif is installed. 16 bits per channel are scaled to 8, as 12 bits if no value is
            above 4,095; float and 32-bit integer pixels are refused.
        size_px: S, height and width of the image.
        resize: "crop" takes the largest square in the middle; "pad" keeps all of the picture and
            adds black borders.

    Returns:
        (S, S, 3) uint8, RGB.

    Raises:
        DataError: it cannot be read, is not a picture, is damaged, or has over 100 megapixels.
    """
    with without_warnings():
        return read_quietly(file, size_px, resize)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Inside the block Pillow says nothing about its size limit, which ours replaces, and about odd
    metadata. Python keeps one list of filters for all threads, so it is for one thread at a time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_quietly(
    file: str | os.PathLike | bytes | Image.Image, size_px: int, resize: str
) -> np.ndarray:
    """:func:`read_picture` in several threads, inside of :func:`without_warnings`."""
    is_named = not isinstance(file, (bytes, Image.Image))
    name = str(file) if is_named else "the picture"
    formats = sorted(set(kinds().values()))
    try:
        with _open(_content(file), formats) as picture:
            return np.asarray(_to_square(_to_rgb(picture, size_px), size_px, resize))
    except UnidentifiedImageError as error:
        hint = ""
        if name.lower().endswith((".heic", ".heif")):
            hint = ": install pillow-heif to read it"
        raise DataError(f"{name} is not a picture of a known format{hint}") from error
    except (Image.DecompressionBombError, _TooLarge) as error:
        raise DataError(
            f"{name} has too many pixels ({error}); the most is {MOST_PIXELS:,}, make it smaller"
        ) from error
    except Exception as error:  # decoders raise errors of many types on damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{name} cannot be read: {reason or type(error).__name__}") from error


def _content(
    file: str | os.PathLike | bytes | Image.Image,
) -> str | os.PathLike | io.BytesIO | Image.Image:
    if isinstance(file, Image.Image):
        opened = file.copy()  # the caller's stays as it is
        opened.format = file.format
        return opened
    if isinstance(file, bytes):
        return io.BytesIO(file)
    mode = os.stat(file).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError("it is no file")  # a pipe would be waited for, for ever
    return file


class _TooLarge(Exception):
    pass


def resize_images(images: np.ndarray, size_px: int) -> np.ndarray:
    """Square images of one size at another (bicubic, antialiased).

    Args:
        images: (N, S, S, 3) uint8.
        size_px: height and width of the result.
    """
    if images.shape[1] == size_px:
        return images
    return np.stack([
        np.asarray(_to_square(Image.fromarray(image), size_px, "crop")) for image in images
    ])  # fmt: skip


def _open(stream: str | os.PathLike | io.BytesIO | Image.Image, formats: list[str]) -> Image.Image:
    is_open = isinstance(stream, Image.Image)
    picture = stream if is_open else Image.open(stream, formats=formats)
    width, height = picture.size
    if width * height > MOST_PIXELS:
        picture.close()
        raise _TooLarge(f"{width} x {height}")
    return picture


def _to_rgb(picture: Image.Image, size_px: int) -> Image.Image:
    # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as that is four times our size.
    picture.draft(None, (4 * size_px, 4 * size_px))
    kind = picture.format
    is_16_bits = kind in ("PNG", "PPM")  # Pillow scales a PPM's to 16
    picture.load()
    picture = _upright(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and is_16_bits):
        values = np.asarray(picture).astype(np.uint32)
        # Microscopes and X-ray machines often use 12 of 16 bits; a PPM says its range itself.
        white = 4095 if kind != "PPM" and values.max() <= 4095 else 65535
        # Pillow's own conversion would clip to white.
        picture = Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))
    elif picture.mode[0] in "IF":
        raise ValueError(f"mode {picture.mode} has no known range; save it with 8 or 16 bits")
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        picture = picture.convert("RGBA")
        opaque = Image.new("RGB", picture.size, BACKGROUND)
        opaque.paste(picture, mask=picture.getchannel("A"))
        picture = opaque
    return picture.convert("RGB")


def _to_square(picture: Image.Image, size_px: int, resize: str) -> Image.Image:
    (width, height), size = picture.size, (size_px, size_px)
    if picture.size == size:
        return picture
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        return picture.resize(size, Image.Resampling.BICUBIC, box=box)
    scale = size_px / max(width, height)
    inner = max(1, round(scale * width)), max(1, round(scale * height))
    square = Image.new("RGB", size, BORDER)
    place = ((size_px - inner[0]) // 2, (size_px - inner[1]) // 2)
    square.paste(picture.resize(inner, Image.Resampling.BICUBIC), place)
    return square


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
