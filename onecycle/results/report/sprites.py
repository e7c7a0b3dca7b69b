"""Many small pictures as one file inside the page, each shown by its place in it."""

from __future__ import annotations

import base64
import io
import math

import matplotlib
import numpy as np
from PIL import Image

COLUMNS = 40
HEAT_SHARE = 0.55
"""How much of a picture its heat covers."""


class Sprite:
    """Pictures side by side in one PNG.

    Args:
        name: of its style rule, a letter and then letters or digits.
        pictures: (N, H, W, 3) uint8.
    """

    def __init__(self, name: str, pictures: np.ndarray) -> None:
        self.name = name
        count, height, width = pictures.shape[:3]
        self.columns = max(1, min(COLUMNS, count))
        self.rows = max(1, math.ceil(count / self.columns))
        sheet = np.zeros((self.rows * self.columns, height, width, 3), np.uint8)
        sheet[:count] = pictures
        sheet = sheet.reshape(self.rows, self.columns, height, width, 3).swapaxes(1, 2)
        self._sheet = sheet.reshape(self.rows * height, self.columns * width, 3)

    def style(self) -> str:
        """The rule that holds the file."""
        stream = io.BytesIO()
        Image.fromarray(self._sheet).save(stream, format="PNG", optimize=True)
        data = base64.b64encode(stream.getvalue()).decode()
        return (
            f".{self.name}{{background-image:url(data:image/png;base64,{data});"
            f"background-size:calc({self.columns}*var(--size)) calc({self.rows}*var(--size))}}"
        )

    def picture(self, index: int, label: str) -> str:
        """The picture as an element; ``label`` is escaped already."""
        row, column = divmod(index, self.columns)
        place = f"--x:{column};--y:{row}"
        return f'<i class="px {self.name}" style="{place}" role="img" aria-label="{label}"></i>'


def heated(pictures: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Heat laid over pictures.

    Args:
        pictures: (N, H, W, 3) uint8.
        heat: (N, H, W), 0..1.

    Returns:
        (N, H, W, 3) uint8.
    """
    colours = matplotlib.colormaps["inferno"](np.asarray(heat))[..., :3] * 255
    return ((1 - HEAT_SHARE) * pictures + HEAT_SHARE * colours).round().astype(np.uint8)
