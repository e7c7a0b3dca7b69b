"""Figures of where and why a network fails. Each returns a Figure and shows nothing itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onecycle.data.dataset import ImageDataset
from onecycle.results.evaluation import Evaluation
from onecycle.results.figures.style import (
    GAP,
    LABEL_SIZE,
    LETTER_WIDTH,
    QUIET_COLOUR,
    TEST_COLOUR,
    TRAIN_COLOUR,
    axes_at,
    by_hand,
    fitted,
    legend_below,
    new_figure,
    no_data,
    percent_axis,
    picture_grid,
    quiet_frame,
    shortened,
    whole_axis,
)
from onecycle.results.grad_cam import ErrorMaps
from onecycle.results.pictures import Guess

MOST_PICTURES = 60
"""A figure of predictions shows so many pictures at most."""
CELL = (3.7, 1.75)
"""Width and height in inches of a picture with its predictions."""
SIDE, BAR = 1.4, 1.95
"""In inches: a picture, and a bar of 100 %."""


def plot_reliability(evaluation: Evaluation, *, source: str) -> Figure:
    """How often the network is right, against how sure it is.

    Args:
        evaluation: of the network.
        source: where the images come from.
    """
    points = 100 * evaluation.calibration_error
    title = f"Confidence and accuracy differ by {points:.2f} points on average"
    figure = new_figure(title, source, 8, 7)
    filled = [bin_ for bin_ in evaluation.shown_bins if bin_.count]
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    widths = [bin_.high - bin_.low for bin_ in filled]
    places = [(bin_.low + bin_.high) / 2 for bin_ in filled]
    upper.bar(
        places, [bin_.accuracy for bin_ in filled], widths,
        color=TRAIN_COLOUR, edgecolor="white", label="accuracy",
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], "--", color=QUIET_COLOUR, linewidth=1.5, label="perfect calibration")
    upper.plot(
        [bin_.confidence for bin_ in filled], [bin_.confidence for bin_ in filled], "D",
        color=TEST_COLOUR, markersize=6, clip_on=False, label="mean confidence",
    )  # fmt: skip
    upper.set_ylim(0, 1.02)
    percent_axis(upper.yaxis)
    upper.set_ylabel("accuracy", fontsize=LABEL_SIZE)
    bars = lower.bar(
        places, [bin_.count for bin_ in filled], widths, color=QUIET_COLOUR, ec="white"
    )
    lower.bar_label(bars, [f"{bin_.count:,}" for bin_ in filled], padding=2, fontsize=8)
    lower.margins(y=0.2)
    whole_axis(lower.yaxis, 3)
    lower.set_ylabel("images", fontsize=LABEL_SIZE)
    lower.set_xlabel("probability of the predicted class", fontsize=LABEL_SIZE)
    percent_axis(lower.xaxis)
    lower.set_xlim(0, 1)
    legend_below(figure, 3)
    for axes in (upper, lower):
        quiet_frame(axes, "y")
    return figure


def plot_grad_cam(
    evaluation: Evaluation, images: ImageDataset, maps: ErrorMaps, *, columns: int = 2
) -> Figure:
    """Misclassified images, and the evidence in them for the predicted and for the true class.

    Args:
        evaluation: of the network.
        images: that were evaluated.
        maps: of some errors.
        columns: images per row, each with its two maps.
    """
    classes, wrong = evaluation.classes, maps.indices
    labels, predicted = evaluation.labels[wrong], evaluation.predicted[wrong]
    rows, columns = max(1, -(-len(labels) // columns)), max(1, min(columns, len(labels)))
    title = "Grad-CAM"
    if maps.layer and len(labels):
        title = f"Grad-CAM of {maps.layer}: misclassified images and the evidence for a class"
    size, above = 1.75, 0.5  # inches of a picture with its gap, and of its caption
    group = 3 * size + 0.3
    figure = new_figure(title, images.source, max(7, columns * group - 0.3 + GAP), 1)
    if not maps.layer:
        return no_data(figure, "no layer with a map")
    if not len(labels):
        return no_data(figure, "nothing is misclassified")
    head = by_hand(figure, rows * (above + size))
    side = (figure.get_figwidth() - columns * group + 0.3 + GAP) / 2
    for number, (image, label, guess) in enumerate(zip(images.data[wrong], labels, predicted)):
        row, column = divmod(number, columns)
        names = (classes[label], f"for {classes[guess]}", f"for {classes[label]}")
        kinds = ("true class", "predicted class", "true class")
        heats = (None, maps.predicted[number], maps.true[number])
        captions, font = fitted([f"{n}\n({k})" for n, k in zip(names, kinds)], size)
        for k, (caption, heat) in enumerate(zip(captions, heats)):
            x, y = side + column * group + k * size, head + row * (above + size) + above
            axes = axes_at(figure, x, y, size - GAP, size - GAP)
            axes.imshow(image, interpolation="nearest")
            if heat is not None:
                axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
            axes.set_title(caption, fontsize=min(font, LABEL_SIZE - 1), pad=4, parse_math=False)
    return figure


def plot_misclassified(
    evaluation: Evaluation,
    images: ImageDataset,
    *,
    count: int = 20,
    columns: int = 5,
) -> Figure:
    """The most confidently wrong images: true class, predicted class and its probability.

    Args:
        evaluation: of the network.
        images: that were evaluated.
        count: how many are shown at most.
        columns: images per row.
    """
    classes, labels, predicted = evaluation.classes, evaluation.labels, evaluation.predicted
    wrong, shown = evaluation.wrong, evaluation.wrong[:count]
    names = [shortened(name, 18) for name in classes]  # so that nothing behind a name is cut off
    captions = [
        f"{names[labels[i]]}, predicted as\n"
        f"{names[predicted[i]]} ({evaluation.probabilities[i, predicted[i]]:.1%})"
        for i in shown
    ]
    title = f"Misclassified: {len(wrong):,} of {len(labels):,}"
    title += ", the most confident ones" if 0 < len(shown) < len(wrong) else ""
    return picture_grid(
        images.data[shown], captions, title, images.source, columns=columns,
        empty="none is shown" if len(wrong) else "nothing is misclassified",
        below=[PurePath(evaluation.files[i]).name for i in shown] if evaluation.files else (),
    )  # fmt: skip


def plot_predictions(
    pictures: Sequence[np.ndarray] | np.ndarray,
    guesses: Sequence[Sequence[Guess]],
    *,
    names: Sequence[str],
    source: str,
) -> Figure:
    """Each picture as the network sees it, beside the probabilities of its classes, in a grid.

    Args:
        pictures: (N, S, S, 3) uint8; the first ``MOST_PICTURES`` are shown.
        guesses: those of each picture, as :func:`predict_pictures` gives them.
        names: what each picture is called.
        source: what the network was trained on.
    """
    count = min(len(pictures), MOST_PICTURES)
    shown = f", the first {count} of {len(pictures):,}" if count < len(pictures) else ""
    columns = max(1, round(math.sqrt(count * CELL[1] / CELL[0]) + 0.2))
    rows = max(1, math.ceil(count / columns))
    figure = new_figure(f"Predictions{shown}", f"trained on {source}", columns * CELL[0], 1)
    if not count:
        return no_data(figure)
    head = by_hand(figure, rows * CELL[1])
    width, height = figure.get_size_inches()
    axes = axes_at(figure, 0, 0, width, height)  # one for all, in inches: many are slow
    for place, (picture, best, name) in enumerate(zip(pictures[:count], guesses, names)):
        row, column = divmod(place, columns)
        x, y = column * CELL[0] + 0.1, head + row * CELL[1] + 0.2
        axes.imshow(
            picture, interpolation="nearest", extent=(x, x + SIDE, y + SIDE, y), aspect="auto"
        )
        title = shortened(name, 48, keep_end=True)
        axes.text(x, y - 0.04, title, va="bottom", fontsize=9, parse_math=False)
        _draw_guesses(axes, x + SIDE + 0.1, y, best)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


def _draw_guesses(axes: Axes, x: float, y: float, best: Sequence[Guess]) -> None:
    """Bars with their texts on them, so that a name of any length has room."""
    pitch = SIDE / max(5, len(best))
    places = [y + (rank + 0.5) * pitch for rank in range(len(best))]
    colours = ["#9CCBE8", *["#E3E3E3"] * (len(best) - 1)]
    widths = [BAR * guess.probability for guess in best]
    axes.barh(places, widths, 0.84 * pitch, left=x, color=colours)
    font = min(9, 60 * pitch)
    room = int(72 * BAR / (LETTER_WIDTH * font)) - 7
    for place, guess in zip(places, best):
        options = {"va": "center", "fontsize": font, "parse_math": False}
        axes.text(x + 0.03, place, shortened(guess.label, room), **options)
        axes.text(x + BAR - 0.02, place, f"{guess.probability:.1%}", ha="right", **options)
