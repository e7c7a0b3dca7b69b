"""Figures of where and why a network fails. Each returns a matplotlib Figure from plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from sklearn.metrics import confusion_matrix

from onecycle.results.figures.style import new_figure, no_data, picture_grid, stretch

# Okabe and Ito's colours, told apart with any colour vision.
FIRST_COLOUR = "#0072B2"
SECOND_COLOUR = "#D55E00"
QUIET_COLOUR = "#9A9A9A"
TITLE_SIZE = 15
LABEL_SIZE = 12


def plot_reliability(bins: Sequence[Any], *, calibration_error: float, source: str) -> Figure:
    """How often the network is right, against how sure it is.

    Args:
        bins: records with ``low``, ``high``, ``count``, and ``confidence`` and ``accuracy``
            (0..1, None in an empty bin).
        calibration_error: the expected calibration error, 0..1.
        source: where the images come from.
    """
    figure = _figure(f"Calibration, expected error {calibration_error:.2%}", source, 8, 6.5)
    filled = [bin_ for bin_ in bins if bin_.count]
    if not filled:
        return _no_data(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    widths = [bin_.high - bin_.low for bin_ in filled]
    places = [(bin_.low + bin_.high) / 2 for bin_ in filled]
    upper.bar(
        places, [bin_.accuracy for bin_ in filled], widths,
        color=FIRST_COLOUR, edgecolor="white", label="accuracy of the images in the bin",
    )  # fmt: skip
    upper.plot(
        [bin_.confidence for bin_ in filled], [bin_.confidence for bin_ in filled], "D",
        color=SECOND_COLOUR, markersize=6, label="their mean confidence",
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], "--", color=QUIET_COLOUR, linewidth=1.5, label="perfect calibration")
    upper.set_ylim(0, 1.02)
    upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    upper.set_ylabel("accuracy", fontsize=LABEL_SIZE)
    upper.legend(fontsize=LABEL_SIZE - 1, loc="upper left")
    lower.bar(places, [bin_.count for bin_ in filled], widths, color=QUIET_COLOUR, ec="white")
    lower.set_ylabel("images", fontsize=LABEL_SIZE)
    lower.set_xlabel("probability of the predicted class", fontsize=LABEL_SIZE)
    lower.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lower.set_xlim(0, 1)
    for axes in (upper, lower):
        _quiet_frame(axes, "y")
    return figure


def plot_confused_pairs(
    pairs: Sequence[Any], *, classes: Sequence[str], source: str, count: int = 10
) -> Figure:
    """The pairs of classes that are taken for one another most often.

    Args:
        pairs: records with ``first``, ``second`` (class indices), ``first_as_second`` and
            ``second_as_first`` (images), the most confused first.
        classes: the K class names.
        source: where the images come from.
        count: how many pairs are shown at most.
    """
    shown = list(pairs)[:count]
    figure = _figure("Most confused pairs", source, 10, 1.6 + 0.5 * max(4, len(shown)))
    if not shown:
        return _no_data(figure, "nothing is misclassified")
    axes = figure.subplots()
    names = [f"{classes[pair.first]} · {classes[pair.second]}" for pair in shown]
    forth = [pair.first_as_second for pair in shown]
    back = [pair.second_as_first for pair in shown]
    for values, left, colour, label in (
        (forth, 0, FIRST_COLOUR, "the first taken for the second"),
        (back, forth, SECOND_COLOUR, "the second taken for the first"),
    ):
        bars = axes.barh(
            range(len(names)), values, left=left, color=colour, edgecolor="white", label=label
        )
        texts = [str(n) if n >= 0.03 * max(map(sum, zip(forth, back))) else "" for n in values]
        axes.bar_label(bars, texts, label_type="center", color="white", fontsize=LABEL_SIZE)
    axes.invert_yaxis()
    axes.set_yticks(range(len(names)), names, fontsize=LABEL_SIZE, parse_math=False)
    axes.set_xlabel("images", fontsize=LABEL_SIZE)
    # Inside it would lie on the bars, which may all be as long.
    figure.legend(fontsize=LABEL_SIZE - 1, loc="outside lower center", ncols=2, frameon=False)
    _quiet_frame(axes, "x")
    return figure


def plot_grad_cam(
    images: np.ndarray,
    labels: Sequence[int],
    predicted: Sequence[int],
    heat_predicted: np.ndarray,
    heat_true: np.ndarray,
    *,
    classes: Sequence[str],
    layer: str,
    source: str,
    columns: int = 2,
) -> Figure:
    """Misclassified images, and what in them speaks for the predicted and for the true class.

    Args:
        images: (N, H, W, 3) uint8.
        labels: (N,) true classes.
        predicted: (N,) predicted classes.
        heat_predicted: (N, H, W) Grad-CAM of the predicted class, 0..1.
        heat_true: (N, H, W) Grad-CAM of the true class, 0..1.
        classes: the K class names.
        layer: the layer whose maps were used.
        source: where the images come from.
        columns: images a row, each with its two maps.
    """
    rows = max(1, -(-len(labels) // columns))
    figure = _figure(f"Grad-CAM of {layer}", source, 5.6 * columns, 2.1 * rows + 0.7)
    if not len(labels):
        return _no_data(figure, "nothing is misclassified")
    grid = figure.subplots(rows, 3 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (image, label, guess) in enumerate(zip(images, labels, predicted)):
        row, first = number // columns, 3 * (number % columns)
        captions = (f"{classes[label]}", f"for {classes[guess]}", f"for {classes[label]}")
        kinds = ("true class", "predicted", "true")
        heats = (None, heat_predicted[number], heat_true[number])
        for axes, caption, kind, heat in zip(grid[row, first : first + 3], captions, kinds, heats):
            axes.imshow(image, interpolation="nearest")
            if heat is not None:
                axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
            text = f"{_shortened(caption)}\n({kind})"
            axes.set_title(text, fontsize=LABEL_SIZE - 1, parse_math=False)
    return figure


def _shortened(caption: str, most: int = 22) -> str:
    return caption if len(caption) <= most else f"{caption[: most - 1]}…"


def _figure(title: str, source: str, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(f"{title} · {source}", fontsize=TITLE_SIZE)
    return figure


def _no_data(figure: Figure, text: str = "no data") -> Figure:
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=18, color=QUIET_COLOUR)
    return figure


def _quiet_frame(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.25)
    axes.set_axisbelow(True)


def plot_misclassified(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    source: str,
    count: int = 20,
    columns: int = 5,
) -> Figure:
    """The most confidently wrong images: true class, predicted class and its probability.

    Args:
        images: (N, H, W, 3) uint8.
        labels: (N,) true classes.
        probabilities: (N, K), rows sum to 1.
        classes: the K class names.
        source: where the images come from.
        count: how many are shown at most.
        columns: images a row.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    predicted = probabilities.argmax(axis=1) if len(labels) else labels
    wrong = np.flatnonzero(predicted != labels)
    confidence = probabilities[wrong, predicted[wrong]]
    shown = wrong[np.argsort(-confidence, kind="stable")][:count]
    captions = [
        f"{classes[labels[i]]}, taken for\n"
        f"{classes[predicted[i]]} ({probabilities[i, predicted[i]]:.1%})"
        for i in shown
    ]
    title = f"Misclassified: {len(wrong):,} of {len(labels):,}"
    title += ", the most confident ones" if 0 < len(shown) < len(wrong) else ""
    return picture_grid(
        np.asarray(images)[shown], captions, title, source,
        columns=columns, empty="none is shown" if len(wrong) else "nothing is misclassified",
    )  # fmt: skip


def plot_confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, *, classes: Sequence[str], source: str
) -> Figure:
    """How many images of each true class (rows) were taken for each class (columns).

    Below each number is its share of the row; over 60 classes leave room for neither. Right and
    wrong have colour scales of their own: on one scale the errors would all be white.

    Args:
        labels: (N,) true classes.
        predicted: (N,) predicted classes.
        classes: the K class names.
        source: where the images come from.
    """
    accuracy = f", accuracy {np.mean(np.equal(labels, predicted)):.2%}" if len(labels) else ""
    stretch = stretch(len(classes))
    figure, (axes,) = new_figure(
        f"Confusion matrix{accuracy}", source, width=10 * stretch, height=9.5 * stretch
    )
    if not len(labels):
        return no_data(figure)
    counts = confusion_matrix(labels, predicted, labels=range(len(classes)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(classes), dtype=bool)
    wrong = np.where(right, 0, shares)
    tints = np.where(
        right[..., None], colormaps["Blues"](0.9 * shares),
        colormaps["Oranges"](0.6 * wrong / (wrong.max() or 1)),
    )  # fmt: skip
    tints[counts == 0] = 1  # white
    axes.imshow(tints)
    cell = 72 * 0.75 * 10 * stretch / len(classes)  # in points
    size = min(LABEL_SIZE + 1, cell / 3.2)
    for (row, column), count in np.ndenumerate(counts) if size > 5 else ():
        share = shares[row, column]
        colour = "white" if row == column and share > 0.5 else "black"
        options = {"ha": "center", "va": "center", "color": colour if count else QUIET_COLOUR}
        axes.text(column, row - 0.12, f"{count}", fontsize=size, **options)
        if count:
            axes.text(column, row + 0.26, f"{share:.1%}", fontsize=0.7 * size, **options)
    options = {"fontsize": max(min(LABEL_SIZE, 0.7 * cell), 3), "parse_math": False}
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", **options)
    axes.set_yticks(range(len(classes)), classes, **options)
    axes.set_xlabel("predicted class", fontsize=LABEL_SIZE)
    axes.set_ylabel("true class", fontsize=LABEL_SIZE)
    return figure
