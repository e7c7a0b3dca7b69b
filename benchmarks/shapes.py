"""Drawn shapes on distracting lines: a small set of pictures whose classes CIFAR-10 lacks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "star", "triangle")


def draw_shapes(folder: Path, per_class: int = 60, seed: int = 0) -> Path:
    """Pictures of four shapes in any colour, turn, place and size, in a folder per shape.

    Args:
        folder: made if it is missing.
        per_class: pictures of each shape.
        seed: of all choices.
    """
    rng = np.random.default_rng(seed)
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            suffix = (".png", ".jpg")[number % 2]
            _draw(shape, rng).save(folder / shape / f"{number:03}{suffix}")
    return folder


def _draw(shape: str, rng: np.random.Generator) -> Image.Image:
    width, height = rng.integers(60, 421, 2).tolist()
    picture = Image.new("RGB", (width, height), _colour(rng))
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.integers(3, 9)):
        ends = [float(x) for x in rng.uniform(0, 1, 4) * [width, height, width, height]]
        pen.line(ends, fill=_colour(rng), width=max(1, min(width, height) // 40))
    side = min(width, height)
    radius = side * rng.uniform(0.25, 0.42)
    x = width / 2 + rng.uniform(-0.5, 0.5) * (side - 2 * radius)
    y = height / 2 + rng.uniform(-0.5, 0.5) * (side - 2 * radius)
    fill, turn = _colour(rng), rng.uniform(0, 2 * math.pi)
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        pen.polygon(_corners(shape, x, y, radius, turn), fill=fill)
    return picture


def _corners(shape: str, x: float, y: float, radius: float, turn: float) -> list:
    count = {"square": 4, "star": 10, "triangle": 3}[shape]
    radii = [radius * (0.45 if shape == "star" and k % 2 else 1) for k in range(count)]
    angles = [turn + 2 * math.pi * k / count for k in range(count)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(0, 256, 3).tolist())
