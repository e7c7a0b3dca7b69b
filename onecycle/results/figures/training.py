"""Figures of the images and of a training. Each returns a Figure and shows nothing itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from onecycle.data.dataset import ImageDataset
from onecycle.optim.lr_rule import LRFinding
from onecycle.records import History
from onecycle.results.figures.style import (
    LABEL_SIZE,
    MARK_COLOUR,
    QUIET_COLOUR,
    TEST_COLOUR,
    TRAIN_COLOUR,
    lying,
    new_figure,
    no_data,
    picture_grid,
    quiet_frame,
    shortened,
    stretch,
    whole_ticks,
)


def plot_class_counts(images: ImageDataset) -> Figure:
    """How many images each class has."""
    classes = images.classes
    width = 9 * stretch(len(classes))
    figure = new_figure("Images per class", images.source, width, 4.5)
    axes = figure.subplots()
    counts = np.bincount(images.targets, minlength=len(classes))
    bars = axes.bar(range(len(classes)), counts, color=TRAIN_COLOUR)
    names = [shortened(name, 30) for name in classes]
    axes.set_xticks(range(len(classes)), names, parse_math=False)
    pitch = 72 * 0.85 * width / len(classes)  # of the bars, in points
    if pitch > 28:
        axes.bar_label(bars, labels=[f"{count:,}" for count in counts], padding=2)
    axes.margins(y=0.12)
    axes.set_ylabel("images", fontsize=LABEL_SIZE)
    size = max(min(10, 0.75 * pitch), 3)
    turn = 0 if lying(names, pitch, size) else 30 if pitch > 28 else 90
    axes.tick_params(axis="x", labelrotation=turn, labelsize=size)
    quiet_frame(axes)
    return figure


def plot_samples(
    images: np.ndarray, labels: Sequence[int], of: ImageDataset, *, columns: int = 5
) -> Figure:
    """Images as the network sees them, with the normalisation taken back.

    Args:
        images: (N, 3, H, W) float, channel-normalised.
        labels: (N,) class indices.
        of: the images that they were made from.
        columns: images per row.
    """
    pictures = np.asarray(images).transpose(0, 2, 3, 1) * np.asarray(of.std) + np.asarray(of.mean)
    captions = [of.classes[label] for label in labels]
    title = "Samples after the training transforms"
    return picture_grid(np.clip(pictures, 0, 1), captions, title, of.source, columns=columns)


def plot_lr_finder(found: LRFinding, *, source: str) -> Figure:
    """The loss of a range test against the learning rate, with the chosen rates and their rule.

    Args:
        found: by the range test; it has no losses if LRMAX was given, and no rates if it found none.
        source: where the images come from.
    """
    figure = new_figure("Learning-rate range test", source, 10, 5.5)
    lrs, losses, smoothed = found.lrs, found.losses, found.smoothed
    if not np.isfinite(losses).any():
        return no_data(figure)
    axes = figure.subplots()
    axes.plot(lrs, losses, ".", color=QUIET_COLOUR, markersize=6, label="loss")
    axes.plot(lrs, smoothed, color=TRAIN_COLOUR, linewidth=2.5, label="smoothed loss")
    for rate, name, colour in (
        (found.lr_min, "LRMIN", MARK_COLOUR),
        (found.lr_max, "LRMAX", TEST_COLOUR),
    ):
        if rate is not None:
            axes.axvline(
                rate, color=colour, linestyle="--", linewidth=2, label=f"{name} = {rate:.3g}"
            )
    axes.set_xscale("log")
    finite = np.asarray(smoothed)[np.isfinite(smoothed)]
    if len(finite):  # a diverging end would flatten the rest
        lowest, first = finite.min(), finite[: len(finite) // 4 + 1].max()
        if first > lowest:
            axes.set_ylim(lowest - 0.15 * (first - lowest), first + 0.35 * (first - lowest))
    axes.set_xlabel("learning rate", fontsize=LABEL_SIZE)
    axes.set_ylabel("loss (nats)", fontsize=LABEL_SIZE)
    axes.legend(  # under the axis, for the lines may be anywhere, and above the rule
        fontsize=LABEL_SIZE - 1, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4,
        frameon=False,
    )  # fmt: skip
    if found.rule:
        rule = found.rule.replace("; ", ";\n")
        figure.supxlabel(rule, fontsize=LABEL_SIZE - 2, color="#555555")
    quiet_frame(axes)
    return figure


def plot_history(history: History, *, source: str) -> Figure:
    """Accuracy and loss of the training and test images, epoch by epoch.

    Args:
        history: of a training; what was not evaluated is left out.
        source: where the images come from.
    """
    figure, epochs = new_figure("Training", source, 13, 5), history.epochs
    if not epochs:
        return no_data(figure)
    left, right = figure.subplots(1, 2)
    numbers = [record.epoch for record in epochs]
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
        axes.set_xticks(whole_ticks(numbers[0], numbers[-1]))
        axes.legend(fontsize=LABEL_SIZE)
        quiet_frame(axes)
    left.set_ylabel("accuracy", fontsize=LABEL_SIZE)
    left.yaxis.set_major_formatter(PercentFormatter(1))
    right.set_ylabel("cross-entropy (nats)", fontsize=LABEL_SIZE)
    return figure


def plot_lr_history(history: History, *, source: str, steps_per_epoch: int | None = None) -> Figure:
    """The learning rate that each optimizer step used.

    Args:
        history: of a training.
        source: where the images come from.
        steps_per_epoch: for a second axis that counts epochs; None: without it.
    """
    figure, steps = new_figure("Learning rate of each step", source, 10, 5), history.steps
    if not steps:
        return no_data(figure)
    axes = figure.subplots()
    numbers, rates = [record.step for record in steps], [record.lr for record in steps]
    axes.plot(numbers, rates, color=TRAIN_COLOUR, linewidth=2.5)
    peak, end = int(np.nanargmax(rates)) if np.isfinite(rates).any() else 0, len(rates) - 1
    # Off the line: beside its rise, under its end, above its peak; one word where two are one.
    places = {0: (12, -5, "left"), end: (0, -20, "right"), peak: (0, 9, "center")}
    for index, (right, up, side) in places.items():
        axes.plot(numbers[index], rates[index], "o", color=TEST_COLOUR, markersize=8, zorder=3)
        axes.annotate(
            f"step {numbers[index]}: {rates[index]:.3g}", (numbers[index], rates[index]),
            xytext=(right, up), textcoords="offset points", horizontalalignment=side,
            fontsize=LABEL_SIZE,
        )  # fmt: skip
    axes.update_datalim([(numbers[0], 0)])
    axes.margins(y=0.14)  # the words at the ends stay off the frame
    axes.set_xticks(whole_ticks(numbers[0], numbers[-1]))
    axes.set_xlabel("step", fontsize=LABEL_SIZE)
    axes.set_ylabel("learning rate", fontsize=LABEL_SIZE)
    quiet_frame(axes)
    if steps_per_epoch:
        epochs = axes.secondary_xaxis(
            "top", functions=(lambda x: x / steps_per_epoch, lambda x: x * steps_per_epoch)
        )
        epochs.set_xlabel("epochs done", fontsize=LABEL_SIZE)
        epochs.set_xticks(whole_ticks(0, (numbers[-1] + 1) // steps_per_epoch))
        epochs.spines["top"].set_visible(False)
    return figure
