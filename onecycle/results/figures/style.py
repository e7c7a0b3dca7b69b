"""The look of all figures: frame, colours, grids of pictures, names that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision.
TRAIN_COLOUR = "#0072B2"
TEST_COLOUR = "#D55E00"
MARK_COLOUR = "#009E73"
QUIET_COLOUR = "#9A9A9A"
TITLE_SIZE = 15
LABEL_SIZE = 12
SMALLEST_SIZE = 8
LETTER_WIDTH = 0.56  # a mean, as a share of the font's size


def new_figure(title: str, source: str, width: float, height: float) -> Figure:
    """An empty figure of a size in inches, with its title. It is not pyplot's, so none stays open."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(f"{title} · {source}", fontsize=TITLE_SIZE, parse_math=False)
    return figure


def stretch(num_classes: int) -> float:
    """How much wider than usual a figure is that has a place for each class."""
    return min(max(num_classes / 12, 1.0), 2.0)


def no_data(figure: Figure, text: str = "no data") -> Figure:
    """The text in place of all axes but one: a notebook shows no figure without axes."""
    for axes in figure.axes:
        axes.remove()
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=18, color=QUIET_COLOUR)
    return figure


def legend_below(figure: Figure, columns: int) -> None:
    """One legend for all axes, under them: inside it would lie on what is drawn."""
    entries = [entry for axes in figure.axes for entry in zip(*axes.get_legend_handles_labels())]
    figure.legend(
        *zip(*entries), fontsize=LABEL_SIZE - 1, loc="outside lower center", ncols=columns,
        frameon=False,
    )  # fmt: skip


def whole_ticks(first: int, last: int) -> list[int]:
    """The first and the last of whole numbers, and some round ones between them."""
    steps = (factor * 10**power for power in range(20) for factor in (1, 2, 5))
    step = next(step for step in steps if last - first <= 6 * step)
    between = range(step * math.ceil((first + step / 2) / step), last, step)
    return [first, *(tick for tick in between if last - tick >= step / 2), *{last} - {first}]


def lying(names: Sequence[str], pitch: float, size: float) -> bool:
    """Whether names in a size in points fit side by side, a pitch in points apart."""
    return LETTER_WIDTH * size * max(map(len, names)) < pitch


def quiet_frame(axes: Axes, grid: str = "y") -> None:
    """No frame above and on the right, and a pale grid along one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.25)
    axes.set_axisbelow(True)


def picture_grid(
    pictures: np.ndarray,
    captions: Sequence[str],
    title: str,
    source: str,
    *,
    columns: int,
    empty: str = "no data",
) -> Figure:
    """Pictures (N, H, W, 3) with a caption above each."""
    rows = max(1, -(-len(captions) // columns))
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    size = 1.7 if lines == 1 else 2.0
    figure = new_figure(title, source, columns * size, rows * (size + 0.1 * lines) + 0.6)
    if not captions:
        return no_data(figure, empty)
    captions, font = fitted(captions, size)
    columns = min(columns, len(captions))
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, picture, caption in zip(figure.axes, pictures, captions):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(caption, fontsize=font, parse_math=False)
    return figure


def shortened(name: str, most: int = 22) -> str:
    """A name that fits; what is cut off is at its end."""
    name = name.encode("utf-8", "replace").decode()  # a file name need not be text
    return name if len(name) <= most else f"{name[: most - 1]}…"


def fitted(captions: Sequence[str], width: float) -> tuple[list[str], float]:
    """Captions for pictures of a width in inches, the longest cut, and their size in points."""
    most = int(72 * width / (LETTER_WIDTH * SMALLEST_SIZE))
    cut = lambda caption: "\n".join(shortened(line, most) for line in caption.split("\n"))  # noqa: E731
    captions = [cut(caption) for caption in captions]
    longest = max(len(line) for caption in captions for line in [*caption.split("\n"), " "])
    return captions, min(LABEL_SIZE, 72 * width / (LETTER_WIDTH * longest))
