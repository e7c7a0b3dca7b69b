"""Pictures that are damaged, odd or enormous: an image, or an error of one line."""

import io
import random
import time
import warnings

import numpy as np
import small_runs
from PIL import Image

from onecycle.data.pictures import read_picture
from onecycle.errors import DataError

KINDS = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"),
    "GIF": ("P", "L"), "WEBP": ("RGB", "RGBA"), "BMP": ("RGB", "L"), "TIFF": ("RGB", "I;16", "CMYK"),
    "PPM": ("RGB", "L"), "TGA": ("RGB", "RGBA"), "ICO": ("RGBA",), "JPEG2000": ("RGB", "L"),
}  # fmt: skip
SIZES = ((1, 1), (3, 40), (33, 32), (64, 64), (300, 7))
SLOWEST_S = 5.0


def encoded(draw):
    """A picture of noise in one of the formats, modes and sizes."""
    kind = draw.choice(sorted(KINDS))
    mode, size = draw.choice(KINDS[kind]), draw.choice(SIZES)
    if kind == "ICO":
        size = (32, 32)
    pixels = np.random.default_rng(draw.randrange(1000)).integers(
        0, 256, (*size[::-1], 4), np.uint8
    )
    picture = Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode != "RGBA":
        picture = (
            picture.convert("RGB").convert(mode) if mode not in ("LA",) else picture.convert(mode)
        )
    stream = io.BytesIO()
    picture.save(stream, kind)
    return kind, stream.getvalue()


def test_pictures(trials, tmp_path):
    """Pictures of all formats, whole and damaged, also under the name of another format."""
    draw, counts = random.Random(0), {"pictures": 0, "read": 0, "refused": 0}
    slowest = 0.0
    for number in range(trials.scaled(4000, least=80)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind, content = encoded(draw)
        is_whole = draw.random() < 0.2
        if not is_whole:
            content = small_runs.damage(content, draw)
        file = tmp_path / f"picture.{draw.choice(['png', 'jpg', 'gif', 'webp', 'txt'])}"
        file.write_bytes(content)
        size, begun = draw.choice([24, 32, 64]), time.perf_counter()
        try:
            image = read_picture(file, size, resize=draw.choice(["crop", "pad"]))
            counts["read"] += 1
            if image.shape != (size, size, 3) or image.dtype != np.uint8:
                trials.failures.append(f"{kind} {number}: {image.dtype} of {image.shape}")
        except DataError as error:
            counts["refused"] += 1
            if is_whole or "\n" in str(error) or str(file) not in str(error):
                trials.failures.append(f"{kind} {number}, whole: {is_whole}: {error}")
        except BaseException as error:  # noqa: BLE001
            trials.failures.append(f"{kind} {number}: {error!r:.300}")
        counts["pictures"] += 1
        slowest = max(slowest, time.perf_counter() - begun)
    if slowest > SLOWEST_S:
        trials.failures.append(f"a picture took {slowest:.1f} s")
    trials.record(**counts, formats=len(KINDS))
