"""Figures from plain data. Each function returns a matplotlib Figure and shows nothing itself.

A figure without data says so. The figures are not pyplot's, so none stays open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import confusion_matrix

# Okabe and Ito's colours, told apart with any colour vision.
TRAIN_COLOUR = "#0072B2"
TEST_COLOUR = "#D55E00"
MARK_COLOUR = "#009E73"
QUIET_COLOUR = "#9A9A9A"
TITLE_SIZE = 15
LABEL_SIZE = 12
SMALLEST_SIZE = 7
LETTER_WIDTH = 0.56  # a mean, as a share of the font's size


def plot_class_counts(targets: np.ndarray, *, classes: Sequence[str], source: str) -> Figure:
    """How many images each class has.

    Args:
        targets: (N,) class indices.
        classes: the K class names.
        source: where the images come from.
    """
    width = 9 * _stretch(len(classes))
    figure, (axes,) = _figure("Images per class", source, width=width, height=4.5)
    counts = np.bincount(np.asarray(targets, dtype=np.int64), minlength=len(classes))
    if not counts.sum():
        return _no_data(figure)
    bars = axes.bar(range(len(classes)), counts, color=TRAIN_COLOUR)
    axes.set_xticks(range(len(classes)), classes, parse_math=False)
    pitch = 72 * 0.85 * width / len(classes)  # of the bars, in points
    if pitch > 28:
        axes.bar_label(bars, labels=[f"{count:,}" for count in counts], padding=2)
    axes.margins(y=0.12)
    axes.set_ylabel("images", fontsize=LABEL_SIZE)
    size = max(min(10, 0.75 * pitch), 3)
    axes.tick_params(axis="x", labelrotation=30 if pitch > 28 else 90, labelsize=size)
    _quiet_frame(axes)
    return figure


def plot_samples(
    images: np.ndarray,
    labels: Sequence[int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
    source: str,
    columns: int = 5,
) -> Figure:
    """Images as the network sees them, with the normalisation taken back.

    Args:
        images: (N, 3, H, W) float, channel-normalised.
        labels: (N,) class indices.
        mean: of each channel, 0..1, as the images were normalised.
        std: of each channel, 0..1.
        classes: the K class names.
        source: where the images come from.
        columns: images a row.
    """
    pictures = np.asarray(images).transpose(0, 2, 3, 1) * np.asarray(std) + np.asarray(mean)
    captions = [classes[label] for label in labels]
    title = "Samples after the training transforms"
    return _picture_grid(np.clip(pictures, 0, 1), captions, title, source, columns=columns)


def plot_lr_finder(
    lrs: Sequence[float],
    losses: Sequence[float],
    *,
    smoothed: Sequence[float],
    lr_max: float,
    lr_min: float,
    source: str,
    rule: str = "",
) -> Figure:
    """The loss of a range test against the rate, with the chosen rates marked.

    Args:
        lrs: the rate of each step.
        losses: the batch's loss at each step, in nats.
        smoothed: the curve that the choice was made on.
        lr_max: LRMAX.
        lr_min: LRMIN.
        source: where the images come from.
        rule: how the rates were chosen, shown below the curve.
    """
    figure, (axes,) = _figure("Learning-rate range test", source, width=10, height=5.5)
    if not np.isfinite(losses).any():
        return _no_data(figure)
    axes.plot(lrs, losses, ".", color=QUIET_COLOUR, markersize=6, label="loss of the batch")
    axes.plot(lrs, smoothed, color=TRAIN_COLOUR, linewidth=2.5, label="smoothed loss")
    for rate, name, colour in ((lr_min, "LRMIN", MARK_COLOUR), (lr_max, "LRMAX", TEST_COLOUR)):
        axes.axvline(rate, color=colour, linestyle="--", linewidth=2, label=f"{name} = {rate:.3g}")
    axes.set_xscale("log")
    finite = np.asarray(smoothed)[np.isfinite(smoothed)]
    if len(finite):  # a diverging end would flatten the rest
        lowest, first = finite.min(), finite[: len(finite) // 4 + 1].max()
        if first > lowest:
            axes.set_ylim(lowest - 0.15 * (first - lowest), first + 0.35 * (first - lowest))
    axes.set_xlabel("learning rate", fontsize=LABEL_SIZE)
    axes.set_ylabel("loss (nats)", fontsize=LABEL_SIZE)
    axes.legend(fontsize=LABEL_SIZE - 1, loc="lower left")
    if rule:
        figure.supxlabel(rule.replace("; ", ";\n"), fontsize=LABEL_SIZE - 2, color="#555555")
    _quiet_frame(axes)
    return figure


def plot_history(epochs: Sequence[Any], *, source: str) -> Figure:
    """Accuracy and loss of the training and test images, epoch by epoch.

    Args:
        epochs: records with ``epoch``, ``train_accuracy``, ``test_accuracy`` (0..1),
            ``train_loss`` and ``test_loss`` (nats); None where nothing was tested.
        source: where the images come from.
    """
    figure, (left, right) = _figure("Training", source, width=13, height=5, columns=2)
    numbers = [record.epoch for record in epochs]
    if not numbers:
        return _no_data(figure)
    for axes, quantity in ((left, "accuracy"), (right, "loss")):
        # Told apart in grey too.
        for split, colour, line in (("train", TRAIN_COLOUR, "o--"), ("test", TEST_COLOUR, "s-")):
            values = [getattr(record, f"{split}_{quantity}") for record in epochs]
            if values[-1] is None:
                continue
            last = f"{values[-1]:.2%}" if quantity == "accuracy" else f"{values[-1]:.3f}"
            axes.plot(
                numbers, values, line, color=colour, linewidth=2, markersize=4,
                label=f"{split}, last epoch: {last}",
            )  # fmt: skip
        axes.set_xlabel("epoch", fontsize=LABEL_SIZE)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=LABEL_SIZE)
        _quiet_frame(axes)
    left.set_ylabel("accuracy", fontsize=LABEL_SIZE)
    left.yaxis.set_major_formatter(PercentFormatter(1))
    right.set_ylabel("cross-entropy (nats)", fontsize=LABEL_SIZE)
    return figure


def plot_lr_history(
    steps: Sequence[Any], *, source: str, steps_per_epoch: int | None = None
) -> Figure:
    """The rate that each optimizer step used.

    Args:
        steps: records with ``step`` (from 0) and ``lr``.
        source: where the images come from.
        steps_per_epoch: for a second axis that counts epochs; None: without it.
    """
    figure, (axes,) = _figure("Learning rate of each step", source, width=10, height=5)
    if not steps:
        return _no_data(figure)
    numbers, rates = [record.step for record in steps], [record.lr for record in steps]
    axes.plot(numbers, rates, color=TRAIN_COLOUR, linewidth=2.5)
    peak, end = int(np.nanargmax(rates)) if np.isfinite(rates).any() else 0, len(rates) - 1
    for index, place in ((0, (12, -4)), (peak, (12, 2)), (end, (-12, -4))):
        axes.plot(numbers[index], rates[index], "o", color=TEST_COLOUR, markersize=8, zorder=3)
        axes.annotate(
            f"step {numbers[index]}: {rates[index]:.3g}",
            (numbers[index], rates[index]),
            xytext=place,
            textcoords="offset points",
            horizontalalignment="right" if place[0] < 0 else "left",
            fontsize=LABEL_SIZE,
            bbox={"boxstyle": "square,pad=0.1", "color": "white"},  # the line stays off the words
        )
    axes.update_datalim([(numbers[0], 0)])
    axes.margins(y=0.1)  # the words at the ends stay off the frame
    axes.set_xlabel("step", fontsize=LABEL_SIZE)
    axes.set_ylabel("learning rate", fontsize=LABEL_SIZE)
    _quiet_frame(axes)
    if steps_per_epoch:
        epochs = axes.secondary_xaxis(
            "top", functions=(lambda x: x / steps_per_epoch, lambda x: x * steps_per_epoch)
        )
        epochs.set_xlabel("epochs done", fontsize=LABEL_SIZE)
        epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
        epochs.spines["top"].set_visible(False)
    return figure


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
    return _picture_grid(
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
    stretch = _stretch(len(classes))
    figure, (axes,) = _figure(
        f"Confusion matrix{accuracy}", source, width=10 * stretch, height=9.5 * stretch
    )
    if not len(labels):
        return _no_data(figure)
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


def _figure(
    title: str, source: str, *, width: float, height: float, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(f"{title} · {source}", fontsize=TITLE_SIZE)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _stretch(num_classes: int) -> float:
    """How much wider than usual a figure is that has a place for each class."""
    return min(max(num_classes / 12, 1.0), 2.0)


def _no_data(figure: Figure, text: str = "no data") -> Figure:
    """The text in place of all axes but one: a notebook shows no figure without axes."""
    for axes in figure.axes:
        axes.remove()
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=18, color=QUIET_COLOUR)
    return figure


def _quiet_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


def _picture_grid(
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
    figure = Figure(
        figsize=(columns * size, rows * (size + 0.1 * lines) + 0.6), layout="constrained"
    )
    figure.suptitle(f"{title} · {source}", fontsize=TITLE_SIZE)
    if not captions:
        return _no_data(figure, empty)
    captions, font = _fitted(captions, size)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, picture, caption in zip(figure.axes, pictures, captions):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(caption, fontsize=font, parse_math=False)
    return figure


def _fitted(captions: Sequence[str], width: float) -> tuple[list[str], float]:
    """Captions for pictures of a width in inches, the longest cut, and their size in points."""
    most = int(72 * width / (LETTER_WIDTH * SMALLEST_SIZE))
    cut = lambda line: line if len(line) <= most else f"{line[: most - 1]}…"
    captions = ["\n".join(map(cut, caption.split("\n"))) for caption in captions]
    longest = max(len(line) for caption in captions for line in [*caption.split("\n"), " "])
    return captions, min(LABEL_SIZE, 72 * width / (LETTER_WIDTH * longest))
