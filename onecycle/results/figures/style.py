"""The look of all figures: frame, colours, grids of pictures, names that fit."""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's colours, told apart with any colour vision.
TRAIN_COLOUR = "#0072B2"
TEST_COLOUR = "#D55E00"
MARK_COLOUR = "#009E73"
QUIET_COLOUR = "#9A9A9A"
NOTE_COLOUR = "#555555"
TITLE_SIZE = 15
LABEL_SIZE = 12
NOTE_SIZE = 9
SMALLEST_SIZE = 8
LETTER_WIDTH = 0.56  # a mean, as a share of the font's size
GAP = 0.14  # inches between pictures
NO_DATA_HEIGHT = 2.2  # inches: a sentence needs no whole sheet


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Inside the block matplotlib's own settings hold, whatever a matplotlibrc says: with
    ``text.usetex``, for one, a figure needs LaTeX."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the backend
        yield


def new_figure(title: str, source: str, width: float, height: float) -> Figure:
    """An empty figure of a size in inches, with its title. It is not pyplot's, so none stays open."""
    figure = Figure(figsize=(width, height), layout="constrained")
    room = 72 * width / LETTER_WIDTH  # in letters of a point
    text = f"{title} · {source}"
    if TITLE_SIZE * letters(text) > room:
        text = f"{title}\n{shortened(source, max(12, int(room / SMALLEST_SIZE)))}"
    size = min(TITLE_SIZE, room / max(map(letters, text.split("\n"))))
    figure.suptitle(text, fontsize=size, parse_math=False)
    return figure


def by_hand(figure: Figure, height: float) -> float:
    """Leave a height in inches under the title for axes whose places are set; where it begins.

    The layout engine does not know the height of pictures, and sixty of them take it seconds.
    """
    (title,) = figure.texts
    size = title.get_fontsize() / 72
    head = 0.2 + 1.25 * size * (1 + title.get_text().count("\n"))
    figure.set_layout_engine("none")
    figure.set_figheight(head + height)
    title.set_y(1 - 0.1 / (head + height))
    return head


def axes_at(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes without a frame at a place in inches from the left and from the top."""
    across, down = figure.get_size_inches()
    place = (x / across, 1 - (y + height) / down, width / across, height / down)
    return figure.add_axes(place, xticks=[], yticks=[], frame_on=False)


def no_data(figure: Figure, text: str = "no data") -> Figure:
    """The text in place of all axes but one: a notebook shows no figure without axes."""
    for axes in figure.axes:
        axes.remove()
    figure.set_figheight(NO_DATA_HEIGHT)
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


def whole_axis(axis: Axis, most: int = 6) -> None:
    """Ticks at whole numbers only, as counts need them, and about so many at most."""
    axis.set_major_locator(MaxNLocator(most, integer=True, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def percent_axis(axis: Axis) -> None:
    """Shares, 0..1, in percent with no more decimals than the ticks need."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))


def letters(text: str) -> float:
    """The width of a text in mean letters; Chinese ones are nearly twice as wide."""
    return sum(
        1.8 if char >= "\u2e80" else 1.12 if "\u0370" <= char < "\u2000" else 1 for char in text
    )


def lying(names: Sequence[str], pitch: float, sizes: Sequence[float]) -> float | None:
    """The first of some sizes in points in which names fit side by side, ``pitch`` points apart."""
    longest = max(map(letters, names)) + 0.8  # a gap between two
    return next((size for size in sizes if LETTER_WIDTH * size * longest < pitch), None)


def calm_span(series: Sequence[Sequence[float | None]]) -> tuple[float, float] | None:
    """The ends of an axis on which the first values, a third at most, do not flatten the others.

    None if they do not anyway.
    """
    columns = [
        [value for value in column if value is not None and math.isfinite(value)]
        for column in zip(*series, strict=True)
    ]
    flattening = 0
    for start in range(1, len(columns) // 3 + 1):
        first, rest = columns[start - 1], [value for column in columns[start:] for value in column]
        if rest and max(first, default=-math.inf) > 2 * max(rest) - min(rest) > max(rest):
            flattening = start
    rest = [value for column in columns[flattening:] for value in column]
    if not flattening:
        return None
    low, high = min(rest), max(rest)
    return low - 0.05 * (high - low), high + 0.3 * (high - low)


def brief(value: float) -> str:
    """A number in three digits or so, however large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def mark_above(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    """Mark where a curve leaves the axes at their top, with its highest value up there."""
    top = axes.get_ylim()[1]
    above = [i for i, value in enumerate(y) if math.isfinite(value) and value > top]
    if not above or len(above) == len(y):
        return
    falls = above[0] == 0  # from above into the axes
    inside = next(i for i in range(len(y)) if i not in above) if falls else above[0] - 1
    outside = inside - 1 if falls else inside + 1
    share = (top - y[inside]) / (y[outside] - y[inside]) if math.isfinite(y[inside]) else 1
    if axes.get_xscale() == "log":
        place = x[inside] * (x[outside] / x[inside]) ** share
    else:
        place = x[inside] + share * (x[outside] - x[inside])
    axes.plot([place], [top], "^", color=colour, markersize=7, clip_on=False)
    axes.annotate(
        f"up to {brief(max(y[i] for i in above))}", (place, top),
        xytext=(7 if falls else -7, 2), textcoords="offset points", va="bottom",
        ha="left" if falls else "right", fontsize=LABEL_SIZE - 2, color=colour,
    )  # fmt: skip


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
    below: Sequence[str] = (),
    note: str = "",
) -> Figure:
    """Pictures (N, H, W, 3) with a caption above each, a small text below it, a note under all."""
    columns = max(1, min(columns, len(captions)))
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    size = 1.7 if lines == 1 else 2.1
    width = max(columns * size, 3.4) if captions else 8
    figure = new_figure(title, source, width, 1)
    if not captions:
        return no_data(figure, empty)
    captions, font = fitted(captions, size - GAP / 2)
    above, under = 0.06 + 1.25 * lines * font / 72, 0.22 if below else 0.08
    pitch = above + size - GAP + under
    note_lines = textwrap.wrap(note, int(72 * width / (LETTER_WIDTH * NOTE_SIZE)))
    rows = -(-len(captions) // columns)
    head = by_hand(figure, rows * pitch + 0.18 * len(note_lines) + 0.06)
    side = (width - columns * size + GAP) / 2
    most = int(72 * size / (LETTER_WIDTH * SMALLEST_SIZE))
    for place, (picture, caption) in enumerate(zip(pictures, captions)):
        row, column = divmod(place, columns)
        axes = axes_at(
            figure, side + column * size, head + row * pitch + above, size - GAP, size - GAP
        )
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(caption, fontsize=font, pad=4, parse_math=False)
        if below:
            axes.set_xlabel(
                shortened(below[place], most, keep_end=True), fontsize=SMALLEST_SIZE,
                color=NOTE_COLOUR, labelpad=2, parse_math=False,
            )  # fmt: skip
    if note_lines:
        figure.supxlabel(
            "\n".join(note_lines), y=0, va="bottom", fontsize=NOTE_SIZE, color=NOTE_COLOUR
        )
    return figure


def shortened(name: str, most: int = 22, *, keep_end: bool = False) -> str:
    """A name that fits; what is cut off is at its end, or before the end of a file's name."""
    name = name.encode("utf-8", "replace").decode()  # a file name need not be text
    if letters(name) <= most:
        return name
    while letters(name) > most - 1:
        name = f"{name[: len(name) // 2 - 1]}{name[len(name) // 2 :]}" if keep_end else name[:-1]
    return f"{name[: len(name) // 2]}…{name[len(name) // 2 :]}" if keep_end else f"{name}…"


def fitted(captions: Sequence[str], width: float) -> tuple[list[str], float]:
    """Captions for pictures of a width in inches, the longest cut, and their size in points."""
    most = int(72 * width / (LETTER_WIDTH * SMALLEST_SIZE))
    cut = lambda caption: "\n".join(shortened(line, most) for line in caption.split("\n"))  # noqa: E731
    captions = [cut(caption) for caption in captions]
    longest = max(letters(line) for caption in captions for line in [*caption.split("\n"), " "])
    return captions, min(LABEL_SIZE, 72 * width / (LETTER_WIDTH * longest))
