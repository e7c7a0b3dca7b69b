import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from onecycle.data import pictures
from onecycle.data.pictures import read_picture
from onecycle.errors import DataError

WHITE = (255, 255, 255)


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def encoded(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def ramp(width, height, mode="RGB"):
    """Bright to the right in red, downwards in green; blue is even."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.dstack([x, y, np.full_like(x, 60)]).astype(np.uint8)).convert(mode)


def test_a_picture_of_32x32_keeps_its_pixels_in_every_lossless_mode():
    rgb, palette = noise(1)[0], noise(1, seed=2)[0, :8].reshape(256, 3)
    grey = rgb[..., 0]
    indexed = Image.fromarray(grey)
    indexed.putpalette(palette.tobytes())
    opaque = np.dstack([rgb, np.full((32, 32), 255, np.uint8)])
    for picture, expected in [
        (Image.fromarray(rgb), rgb),
        (Image.fromarray(grey), np.dstack([grey] * 3)),
        (indexed, palette[grey]),
        (Image.fromarray(opaque), rgb),
        (Image.fromarray(grey > 99), np.dstack([255 * (grey > 99)] * 3)),
    ]:
        image = read_picture(encoded(picture))
        assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
        assert np.array_equal(image, expected), picture.mode


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_of_32x32_is_what_pillow_decodes(mode):
    content = encoded(ramp(32, 32, mode), "JPEG", quality=80)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(read_picture(content), expected)


@pytest.mark.parametrize(
    "kind",
    ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO", "PCX"],
)
def test_every_format_gives_the_same_image_from_path_bytes_and_opened_picture(tmp_path, kind):
    content = encoded(ramp(48, 48), kind)
    file = tmp_path / "picture with another name.dat"
    file.write_bytes(content)
    image = read_picture(file)
    assert np.array_equal(image, read_picture(content))
    with Image.open(file) as opened:
        assert np.array_equal(image, read_picture(opened))
        assert opened.size == (48, 48)
    difference = image.astype(int) - np.asarray(ramp(32, 32))
    assert np.abs(difference).mean() < 8  # of a GIF's 256 colours; the others are below 3


def test_an_opened_picture_stays_as_it_was():
    content = encoded(ramp(600, 600), "JPEG")  # which would be decoded at a fraction of its size
    with Image.open(io.BytesIO(content)) as opened:
        first = read_picture(opened)
        assert opened.size == (600, 600)
        assert np.array_equal(read_picture(opened), first)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (33, 32), (64, 2000)])
def test_the_middle_square_is_taken_and_keeps_its_proportions(size):
    # Grey squares of the side's length on a black frame: none of the frame may be seen.
    side = min(size)
    picture = Image.new("RGB", size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    picture.paste(ramp(side, side), (left, top))
    expected = np.asarray(ramp(32, 32)).astype(int)
    found = read_picture(encoded(picture)).astype(int)
    assert np.abs(found - expected)[2:-2, 2:-2].max() <= 12


def test_resizing_is_antialiased():
    # Lines of one pixel: a filter without antialiasing would keep some black and some white.
    lines = np.zeros((512, 512), np.uint8)
    lines[:, ::2] = 255
    image = read_picture(encoded(Image.fromarray(lines)))
    assert np.abs(image[2:-2, 2:-2].astype(int) - 127.5).max() < 6


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (31, 32)])
def test_a_smaller_picture_is_enlarged(size):
    image = read_picture(encoded(Image.new("RGB", size, "teal")))
    assert image.shape == (32, 32, 3)
    assert (image == (0, 128, 128)).all()


def test_a_large_jpeg_gives_what_its_pixels_say():
    image = read_picture(encoded(ramp(1200, 1200), "JPEG", quality=95)).astype(int)
    assert np.abs(image - np.asarray(ramp(32, 32)).astype(int)).max() <= 8


def test_exif_orientation_is_followed():
    upright = np.asarray(ramp(32, 32)).copy()
    upright[:8, :8] = WHITE
    exif = Image.Exif()
    for tag, stored in [
        (1, upright), (2, upright[:, ::-1]), (3, upright[::-1, ::-1]), (4, upright[::-1]),
        (5, upright.swapaxes(0, 1)), (6, np.rot90(upright)),
        (7, upright[::-1, ::-1].swapaxes(0, 1)), (8, np.rot90(upright, -1)),
    ]:  # fmt: skip
        exif[0x0112] = tag
        for kind in ("PNG", "JPEG"):
            content = encoded(Image.fromarray(stored), kind, exif=exif)
            difference = read_picture(content).astype(int) - upright
            assert np.abs(difference).mean() < (1 if kind == "PNG" else 8), (tag, kind)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_metadata_that_cannot_be_read_spoils_no_picture(kind):
    options = {} if kind == "JPEG" else {"lossless": True}
    plain = read_picture(encoded(ramp(32, 32), kind, **options))
    exif = b"Exif\0\0junk junk" if kind == "JPEG" else b"junk junk"
    assert np.array_equal(read_picture(encoded(ramp(32, 32), kind, exif=exif, **options)), plain)


def test_of_damaged_metadata_the_orientation_is_still_followed():
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0)
    resolution = struct.pack("<HHI4s", 0x011A, 2, 4, b"odd")  # a text, and no number
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + orientation + resolution + bytes(4)
    content = encoded(ramp(32, 32), "JPEG", exif=exif, quality=95)
    difference = read_picture(content).astype(int) - np.asarray(ramp(32, 32))[::-1, ::-1]
    assert np.abs(difference).mean() < 3


def test_transparent_parts_are_white_in_every_mode():
    alpha = np.zeros((32, 32), np.uint8)
    alpha[:, 16:] = 255
    alpha[0] = 128
    rgba = Image.fromarray(np.dstack([np.full((32, 32, 3), 40, np.uint8), alpha]))
    indexed = Image.fromarray((alpha > 200).astype(np.uint8))
    indexed.putpalette([200, 0, 0, 40, 40, 40])
    contents = {
        "RGBA": encoded(rgba),
        "LA": encoded(rgba.convert("LA")),
        "WEBP": encoded(rgba, "WEBP", lossless=True),
        "P": encoded(indexed, transparency=0),
        "P in GIF": encoded(indexed, "GIF", transparency=0),
        "RGB with one colour": encoded(indexed.convert("RGB"), transparency=(200, 0, 0)),
    }
    for name, content in contents.items():
        image = read_picture(content)
        assert (image[1:, :16] == WHITE).all(), name
        assert (image[1:, 16:] == 40).all(), name
    # Half transparent is half white.
    assert (np.abs(read_picture(contents["RGBA"])[0].astype(int) - 147) <= 1).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("side", [32, 64])
def test_16_bits_are_scaled_to_8(kind, side):
    values = np.linspace(0, 65535, side * side).round().astype(np.uint16).reshape(side, side)
    image = read_picture(encoded(Image.fromarray(values), kind))
    assert np.array_equal(image, np.dstack([image[..., 0]] * 3))
    small = values.reshape(32, side // 32, 32, side // 32).mean(axis=(1, 3))
    assert np.abs(image[..., 0] - np.round(small / 257)).max() <= (0 if side == 32 else 2)


@pytest.mark.parametrize("most", [1023, 65535])
def test_a_grey_map_of_more_than_8_bits_is_scaled_by_its_maximum(most):
    values = np.linspace(0, most, 1024).round().astype(">u2").reshape(32, 32)
    image = read_picture(b"P5 32 32 %d\n" % most + values.tobytes())
    assert np.abs(image[..., 0] - 255 * (values / most)).max() < 0.6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_12_bits_in_16_are_scaled_to_8(kind):
    values = np.linspace(0, 4095, 1024).round().astype(np.uint16).reshape(32, 32)
    image = read_picture(encoded(Image.fromarray(values), kind))
    assert np.abs(image[..., 0] - values / 4095 * 255).max() <= 0.5


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (3, 500)])
@pytest.mark.parametrize("side", [24, 64, 224])
def test_padding_keeps_the_whole_picture_at_any_size(size, side):
    image = read_picture(encoded(Image.new("RGB", size, "white")), side, resize="pad")
    assert image.shape == (side, side, 3)
    scale = side / max(size)
    area = max(1, round(scale * size[0])) * max(1, round(scale * size[1]))
    assert (image == 255).all(axis=2).sum() == area
    assert (image == 0).all(axis=2).sum() == side * side - area


@pytest.mark.parametrize("side", [24, 64, 224])
def test_an_image_has_the_size_that_is_asked_for(side):
    found = read_picture(encoded(ramp(448, 448)), side)
    assert found.shape == (side, side, 3)
    assert np.abs(found.astype(int) - np.asarray(ramp(side, side))).max() <= 12


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="it is no file"):
        read_picture(tmp_path / "pipe.png")


def test_cmyk_is_read_in_colour():
    for kind in ("JPEG", "TIFF"):
        content = encoded(ramp(32, 32, "CMYK"), kind)
        difference = read_picture(content).astype(int) - np.asarray(ramp(32, 32))
        assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_taken(kind):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("teal", "red", "white")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(read_picture(content).astype(int) - (0, 128, 128)).max() <= 4


@pytest.mark.parametrize("kind", [np.float32, np.int32], ids=["float", "32-bit integers"])
def test_numbers_without_a_known_range_are_refused(kind):
    with pytest.raises(DataError, match="8 or 16 bits"):
        read_picture(encoded(Image.fromarray(np.zeros((32, 32), kind)), "TIFF"))


def without_decoding(monkeypatch):
    monkeypatch.setattr(
        pictures.Image.Image, "load", lambda *_: pytest.fail("the picture is decoded")
    )


@pytest.mark.parametrize("size", [(10_001, 10_000), (60_000, 60_000), (1, 2**31 - 1)])
def test_an_enormous_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch, size):
    file = tmp_path / "bomb.png"
    good = bytearray(encoded(Image.new("1", (8, 8))))
    good[16:24] = b"".join(side.to_bytes(4, "big") for side in size)
    good[29:33] = zlib.crc32(good[12:29]).to_bytes(4, "big")
    file.write_bytes(good)
    without_decoding(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="too many pixels.*100,000,000") as caught:
            read_picture(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_limit_does_not_hang_on_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 40 * 40)
    assert read_picture(encoded(ramp(40, 40))).shape == (32, 32, 3)
    with pytest.raises(DataError, match="40 x 41"):
        read_picture(encoded(ramp(40, 41)))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>\nnot found\n</html>", b"\x89PNG\r\n\x1a\n", POSTSCRIPT, b"GIF89a" + bytes(9)],
    ids=["empty", "html", "eight bytes", "PostScript", "GIF of no size"],
)
def test_what_is_no_picture_is_one_line(tmp_path, content):
    file = tmp_path / "фото.jpg"
    file.write_bytes(content)
    for given, name in ((file, str(file)), (content, "the picture")):
        with pytest.raises(DataError) as caught:
            read_picture(given)
        assert str(caught.value).startswith(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_damaged_picture_is_refused_or_read_and_nothing_else(kind):
    good = encoded(Image.fromarray(noise(1)[0]), kind)
    rng = np.random.default_rng(0)
    with pytest.raises(DataError):
        read_picture(good[: len(good) // 2])
    for place in rng.integers(0, len(good), 150):
        damaged = bytearray(good)
        damaged[place] ^= 1 << rng.integers(8)
        try:
            assert read_picture(bytes(damaged)).shape == (32, 32, 3)
        except DataError as error:
            assert "\n" not in str(error)
