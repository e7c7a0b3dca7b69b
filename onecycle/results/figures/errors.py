"""Figures of where and why a network fails. Each returns a Figure and shows nothing itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from onecycle.data.dataset import ImageDataset
from onecycle.results.evaluation import Evaluation
from onecycle.results.figures.style import (
    LABEL_SIZE,
    QUIET_COLOUR,
    TEST_COLOUR,
    TRAIN_COLOUR,
    legend_below,
    lying,
    new_figure,
    no_data,
    picture_grid,
    quiet_frame,
    shortened,
    stretch,
)
from onecycle.results.grad_cam import ErrorMaps
from onecycle.results.pictures import Guess

MOST_ROWS = 24
"""A figure of predictions shows so many pictures at most."""


def plot_reliability(evaluation: Evaluation, *, source: str) -> Figure:
    """How often the network is right, against how sure it is.

    Args:
        evaluation: of the network.
        source: where the images come from.
    """
    bins, error = evaluation.bins, evaluation.calibration_error
    figure = new_figure(f"Expected calibration error {error:.2%}", source, 8, 7)
    filled = [bin_ for bin_ in bins if bin_.count]
    if not filled:
        return no_data(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    widths = [bin_.high - bin_.low for bin_ in filled]
    places = [(bin_.low + bin_.high) / 2 for bin_ in filled]
    upper.bar(
        places, [bin_.accuracy for bin_ in filled], widths,
        color=TRAIN_COLOUR, edgecolor="white", label="accuracy of the images in the bin",
    )  # fmt: skip
    upper.plot(
        [bin_.confidence for bin_ in filled], [bin_.confidence for bin_ in filled], "D",
        color=TEST_COLOUR, markersize=6, label="mean confidence of the images in the bin",
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], "--", color=QUIET_COLOUR, linewidth=1.5, label="perfect calibration")
    upper.set_ylim(0, 1.02)
    upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    upper.set_ylabel("accuracy", fontsize=LABEL_SIZE)
    lower.bar(places, [bin_.count for bin_ in filled], widths, color=QUIET_COLOUR, ec="white")
    lower.set_ylabel("images", fontsize=LABEL_SIZE)
    lower.set_xlabel("probability of the predicted class", fontsize=LABEL_SIZE)
    lower.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lower.set_xlim(0, 1)
    legend_below(figure, 2)
    for axes in (upper, lower):
        quiet_frame(axes, "y")
    return figure


def plot_confused_pairs(evaluation: Evaluation, *, source: str, count: int = 10) -> Figure:
    """The pairs of classes that are most often predicted as one another.

    Args:
        evaluation: of the network.
        source: where the images come from.
        count: how many pairs are shown at most.
    """
    classes = evaluation.classes
    shown = evaluation.confused_pairs[:count]
    figure = new_figure("Most confused pairs", source, 10, 1.6 + 0.5 * max(4, len(shown)))
    if not shown:
        return no_data(figure, "nothing is misclassified")
    axes = figure.subplots()
    names = [
        f"{shortened(classes[pair.first])} · {shortened(classes[pair.second])}" for pair in shown
    ]
    forth = [pair.first_as_second for pair in shown]
    back = [pair.second_as_first for pair in shown]
    for values, left, colour, label in (
        (forth, 0, TRAIN_COLOUR, "first class predicted as second"),
        (back, forth, TEST_COLOUR, "second class predicted as first"),
    ):
        label = label if any(values) else None  # none of them is in the figure
        bars = axes.barh(
            range(len(names)), values, left=left, color=colour, edgecolor="white", label=label
        )
        texts = [str(n) if n >= 0.03 * max(map(sum, zip(forth, back))) else "" for n in values]
        axes.bar_label(bars, texts, label_type="center", color="white", fontsize=LABEL_SIZE)
    axes.set_ylim(max(4, len(names)) - 0.5, -0.5)  # the first on top, and no bar too thick
    axes.set_yticks(range(len(names)), names, fontsize=LABEL_SIZE, parse_math=False)
    axes.set_xlabel("images", fontsize=LABEL_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, 2)
    quiet_frame(axes, "x")
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
    title = f"Grad-CAM of {maps.layer}" if maps.layer else "Grad-CAM"
    figure = new_figure(title, images.source, max(7.5, 6 * columns), 2.1 * rows + 0.7)
    if not maps.layer:
        return no_data(figure, "no layer with a map")
    if not len(labels):
        return no_data(figure, "nothing is misclassified")
    widths = [1, 1, 1, 0.2] * columns  # a gap behind each image and its maps
    grid = figure.subplots(rows, 4 * columns - 1, squeeze=False, width_ratios=widths[:-1])
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (image, label, guess) in enumerate(zip(images.data[wrong], labels, predicted)):
        row, first = number // columns, 4 * (number % columns)
        captions = (f"{classes[label]}", f"for {classes[guess]}", f"for {classes[label]}")
        kinds = ("true class", "predicted", "true")
        heats = (None, maps.predicted[number], maps.true[number])
        for axes, caption, kind, heat in zip(grid[row, first : first + 3], captions, kinds, heats):
            axes.imshow(image, interpolation="nearest")
            if heat is not None:
                axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
            text = f"{shortened(caption)}\n({kind})"
            axes.set_title(text, fontsize=LABEL_SIZE - 1, parse_math=False)
    return figure


def plot_misclassified(
    evaluation: Evaluation, images: ImageDataset, *, count: int = 20, columns: int = 5
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
        images.data[shown], captions, title, images.source,
        columns=columns, empty="none is shown" if len(wrong) else "nothing is misclassified",
    )  # fmt: skip


def plot_confusion_matrix(evaluation: Evaluation, *, source: str) -> Figure:
    """How many images of each true class (rows) were predicted as each class (columns).

    Below each number is its share of the row; over 60 classes leave room for neither. Right and
    wrong have colour scales of their own: on one scale the errors would all be white.

    Args:
        evaluation: of the network.
        source: where the images come from.
    """
    classes, counts = evaluation.classes, evaluation.confusion
    title = f"Confusion matrix, accuracy {evaluation.accuracy:.2%}"
    side = 10 * stretch(len(classes)) if len(classes) > 8 else 7.5
    figure = new_figure(title, source, side, 0.95 * side)
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
    cell = 72 * 0.75 * side / len(classes)  # in points
    size = min(LABEL_SIZE + 1 if len(classes) > 5 else LABEL_SIZE + 5, cell / 3.2)
    for (row, column), count in np.ndenumerate(counts) if size > 5 else ():
        share = shares[row, column]
        colour = "white" if row == column and share > 0.5 else "black"
        options = {"ha": "center", "va": "center", "color": colour if count else QUIET_COLOUR}
        line = size / cell
        axes.text(column, row - 0.5 * line, f"{count}", fontsize=size, **options)
        if count:
            axes.text(column, row + 0.8 * line, f"{share:.1%}", fontsize=0.7 * size, **options)
    names, size = [shortened(name, 24) for name in classes], max(min(LABEL_SIZE, 0.7 * cell), 3)
    turn = 0 if lying(names, 0.75 * cell, size) else 40 if cell > 28 else 90
    options = {"fontsize": size, "parse_math": False}
    axes.set_xticks(
        range(len(names)), names, rotation=turn, ha="right" if turn == 40 else "center", **options
    )
    axes.set_yticks(range(len(names)), names, **options)
    axes.set_xlabel("predicted class", fontsize=LABEL_SIZE)
    axes.set_ylabel("true class", fontsize=LABEL_SIZE)
    return figure


def plot_predictions(
    pictures: Sequence[np.ndarray] | np.ndarray,
    guesses: Sequence[Sequence[Guess]],
    *,
    names: Sequence[str],
    source: str,
) -> Figure:
    """Each picture as the network sees it, beside the probabilities of its guesses.

    Args:
        pictures: (N, 32, 32, 3) uint8; the first ``MOST_ROWS`` are shown.
        guesses: those of each picture, as :func:`predict_pictures` gives them.
        names: what each picture is called.
        source: what the network was trained on.
    """
    rows = min(len(pictures), MOST_ROWS)
    shown = f", the first {rows} of {len(pictures)}" if rows < len(pictures) else ""
    figure = new_figure(f"Predictions{shown}", f"trained on {source}", 8, 0.9 + 2.2 * max(rows, 1))
    if not rows:
        return no_data(figure)
    panels = figure.subplots(rows, 2, squeeze=False, width_ratios=(2, 3))
    for (left, right), picture, best, name in zip(panels, pictures, guesses, names, strict=False):
        left.imshow(picture, interpolation="nearest")
        left.set_axis_off()
        left.set_title(shortened(name, 30), fontsize=10, parse_math=False)
        values = [guess.probability for guess in best]
        colours = [TRAIN_COLOUR, *[QUIET_COLOUR] * (len(best) - 1)]
        bars = right.barh(range(len(best)), values, color=colours)
        right.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=9)
        labels = [shortened(guess.label, 30) for guess in best]
        right.set_yticks(range(len(best)), labels, parse_math=False)
        right.set_ylim(max(4, len(best)) - 0.5, -0.5)  # the first on top, and no bar too thick
        right.set_xlim(0, 1.15)  # room for the figure behind a full bar
        right.set_xticks([])
        right.spines[["top", "right", "bottom"]].set_visible(False)
    return figure
