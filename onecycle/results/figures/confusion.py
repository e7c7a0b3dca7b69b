"""Figures of which classes are predicted as which. Each returns a Figure and shows nothing."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onecycle.results.evaluation import Evaluation
from onecycle.results.figures.style import (
    LABEL_SIZE,
    QUIET_COLOUR,
    TEST_COLOUR,
    TRAIN_COLOUR,
    legend_below,
    letters,
    lying,
    new_figure,
    no_data,
    quiet_frame,
    shortened,
    whole_axis,
)

SMALLEST_COUNT = 5
"""In points: smaller numbers could not be read."""


def plot_confusion_matrix(evaluation: Evaluation, *, source: str) -> Figure:
    """How many images of each true class (rows) were predicted as each class (columns).

    Below each number is its share of the row. With more classes than numbers can be read of, the
    colours and some of the names are left. Right and wrong have colour scales of their own: on one
    scale the errors would all be white.

    Args:
        evaluation: of the network.
        source: where the images come from.
    """
    classes, counts = evaluation.classes, evaluation.confusion
    title = f"Confusion matrix, accuracy {evaluation.accuracy:.2%}"
    side = min(max(1.0 * len(classes) + 2, 5), 10)
    figure = new_figure(title, source, side, 0.95 * side)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # it does not know that cells are square
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(classes), dtype=bool)
    wrong = np.where(right, 0, shares)
    tints = np.where(
        right[..., None], colormaps["Blues"](0.9 * shares),
        colormaps["Oranges"](0.6 * wrong / (wrong.max() or 1)),
    )  # fmt: skip
    tints[counts == 0] = 1  # white
    axes.imshow(tints)
    cell = 72 * 0.8 * side / len(classes)  # in points
    _write_counts(axes, counts, shares, cell)
    _name_classes(axes, [shortened(name, 24) for name in classes], cell)
    axes.set_xlabel("predicted class", fontsize=LABEL_SIZE)
    axes.set_ylabel("true class", fontsize=LABEL_SIZE)
    return figure


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray, cell: float) -> None:
    size = min(LABEL_SIZE + 2, cell / 3.2)
    if size <= SMALLEST_COUNT:
        return
    line = size / cell
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        colour = "white" if row == column and share > 0.5 else "black"
        options = {"ha": "center", "va": "center", "color": colour if count else QUIET_COLOUR}
        up = 0.45 * line if count else 0
        axes.text(column, row - up, f"{count}", fontsize=size, **options)
        if count:
            axes.text(column, row + 0.55 * line, f"{share:.1%}", fontsize=0.72 * size, **options)


def _name_classes(axes: Axes, names: list[str], cell: float) -> None:
    """Lying under the columns if they fit, else turned; where there are too many, each nth."""
    every = max(1, int(np.ceil(8 / cell)))
    size = lying(names, every * cell, (12, 11, 10, 9, 8))
    turn, side = 0, "center"
    if not size:
        size = min(LABEL_SIZE - 1, 0.75 * every * cell)
        turn, side = (40, "right") if every * cell > 28 else (90, "center")
    shown = range(0, len(names), every)
    axes.set_xticks(shown, names[::every], rotation=turn, ha=side, fontsize=size, parse_math=False)
    upright = min(LABEL_SIZE, 0.75 * every * cell)
    axes.set_yticks(shown, names[::every], fontsize=upright, parse_math=False)
    if turn == 40:
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")  # its end is under the column
    if len(names) > 30:
        axes.tick_params(length=2)


def plot_confused_pairs(evaluation: Evaluation, *, source: str, count: int = 10) -> Figure:
    """The pairs of classes that are most often predicted as one another.

    Args:
        evaluation: of the network.
        source: where the images come from.
        count: how many pairs are shown at most.
    """
    shown = evaluation.confused_pairs[:count]
    title = "Most confused pairs, true class → predicted class"
    figure = new_figure(title, source, 10, 1.7 + 0.5 * len(shown))
    if not shown:
        return no_data(figure, "nothing is misclassified")
    axes = figure.subplots()
    names = [_arrow(evaluation.classes[p.first], evaluation.classes[p.second]) for p in shown]
    forth = [pair.first_as_second for pair in shown]
    back = [pair.second_as_first for pair in shown]
    most = max(map(sum, zip(forth, back)))
    for values, left, colour, label in (
        (forth, 0, TRAIN_COLOUR, "in the direction of the arrow"),
        (back, forth, TEST_COLOUR, "in the opposite direction"),
    ):
        label = label if any(values) else None  # none of them is in the figure
        bars = axes.barh(
            range(len(names)), values, left=left, color=colour, edgecolor="white", label=label
        )
        texts = [str(n) if n >= 0.03 * most else "" for n in values]
        axes.bar_label(bars, texts, label_type="center", color="white", fontsize=LABEL_SIZE)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top
    axes.set_xlim(0, 1.03 * most)
    size = LABEL_SIZE if not any("\n" in name for name in names) else LABEL_SIZE - 2
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    axes.set_xlabel("images", fontsize=LABEL_SIZE)
    whole_axis(axes.xaxis)
    legend_below(figure, 2)
    quiet_frame(axes, "x")
    return figure


def _arrow(first: str, second: str) -> str:
    """Both names, one below the other if they are long."""
    line = f"{first} → {second}"
    return line if letters(line) <= 30 else f"{shortened(first, 30)}\n→ {shortened(second, 30)}"
