"""Figures of the images and of a training. Each returns a Figure and shows nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onecycle.data.dataset import ImageDataset
from onecycle.optim.lr_rule import LRFinding
from onecycle.records import EpochRecord, History
from onecycle.results.figures.style import (
    LABEL_SIZE,
    MARK_COLOUR,
    NOTE_COLOUR,
    QUIET_COLOUR,
    TEST_COLOUR,
    TRAIN_COLOUR,
    calm_span,
    lying,
    mark_above,
    new_figure,
    no_data,
    percent_axis,
    picture_grid,
    quiet_frame,
    shortened,
    whole_axis,
    whole_ticks,
)

SAMPLES_TITLE = "Training images as the network sees them"


def plot_class_counts(images: ImageDataset) -> Figure:
    """How many training images each class has: columns, or rows if the names need the room."""
    classes = images.classes
    width = min(max(1.3 * len(classes) + 2.5, 5), 10)
    counts = np.bincount(images.targets, minlength=len(classes))
    names, places = [shortened(name, 30) for name in classes], range(len(classes))
    size = lying(names, 72 * 0.85 * width / len(classes), (11, 10, 9, 8))
    title = "Training images per class"
    if size:
        figure = new_figure(title, images.source, width, 4.5)
        axes = figure.subplots()
        bars = axes.bar(places, counts, 0.8, color=TRAIN_COLOUR)
        axes.set_xticks(places, names, fontsize=size, parse_math=False)
        count_axis, name_axis = axes.yaxis, axes.xaxis
        axes.margins(x=0.02, y=0.12)
    else:
        width, height = 10, min(max(4.5, 0.24 * len(classes) + 1.2), 14)
        figure = new_figure(title, images.source, width, height)
        axes = figure.subplots()
        bars = axes.barh(places, counts, 0.8, color=TRAIN_COLOUR)
        pitch = 72 * (height - 1.2) / len(classes)
        shown = slice(None, None, _every(pitch))
        axes.set_yticks(places[shown], names[shown], fontsize=min(11, pitch), parse_math=False)
        count_axis, name_axis = axes.xaxis, axes.yaxis
        axes.set_ylim(len(classes) - 0.5, -0.5)  # the first on top
        axes.margins(x=0.08)
    if size or pitch > 8:
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=size or 8)
    name_axis.set_tick_params(length=0)
    whole_axis(count_axis)
    count_axis.set_label_text("training images", fontsize=LABEL_SIZE)
    quiet_frame(axes, "y" if size else "x")
    return figure


def _every(pitch: float) -> int:
    """Each how many-th of names a pitch in points apart can be read."""
    return max(1, int(np.ceil(7 / pitch)))


def plot_samples(
    images: np.ndarray, labels: Sequence[int], of: ImageDataset, *, columns: int = 5, note: str = ""
) -> Figure:
    """Images as the network sees them, with the normalisation taken back.

    Args:
        images: (N, 3, H, W) float, channel-normalised.
        labels: (N,) class indices.
        of: the images that they were made from.
        columns: images per row.
        note: what the augmentation does to them, such as :func:`samples_note` says.
    """
    pictures = np.asarray(images).transpose(0, 2, 3, 1) * np.asarray(of.std) + np.asarray(of.mean)
    return picture_grid(
        np.clip(pictures, 0, 1), [of.classes[label] for label in labels], SAMPLES_TITLE, of.source,
        columns=columns, note=note,
    )  # fmt: skip


def samples_note(recipe: Mapping[str, Any], augmentation: str | None) -> str:
    """What the square and the border on augmented images are.

    Args:
        recipe: in plain data.
        augmentation: "batched" is the recipe's; nothing is known of another one.
    """
    if augmentation != "batched":
        return ""
    parts = []
    if recipe.get("cutout_size_px"):
        parts.append("The grey square is the cut-out")
    if recipe.get("padding") == "constant":
        parts.append("the black border is the padding of the random crop")
    said = "; ".join(parts)
    return f"{said[:1].upper()}{said[1:]}." if said else ""


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
    axes.set_xscale("log")
    axes.set_xlim(lrs[0] / 1.2, lrs[-1] * 1.2)  # LRMIN may be far outside
    for rate, name, colour in (
        (found.lr_min, "LRMIN", MARK_COLOUR),
        (found.lr_max, "LRMAX", TEST_COLOUR),
    ):
        if rate is None:
            continue
        said = f"{name} = {rate:.3g}"
        if rate < lrs[0] / 1.2:
            said = f"{said} (left of the axis)"
        axes.axvline(rate, color=colour, linestyle="--", linewidth=2, label=said)
    finite = np.asarray(smoothed)[np.isfinite(smoothed)]
    if len(finite):  # a diverging end would flatten the rest
        lowest, first = finite.min(), finite[: len(finite) // 4 + 1].max()
        if first > lowest:
            axes.set_ylim(lowest - 0.15 * (first - lowest), first + 0.35 * (first - lowest))
            mark_above(axes, lrs, smoothed, TRAIN_COLOUR)
    axes.set_xlabel("learning rate", fontsize=LABEL_SIZE)
    axes.set_ylabel("loss (nats)", fontsize=LABEL_SIZE)
    axes.legend(  # under the axis, for the lines may be anywhere, and above the rule
        fontsize=LABEL_SIZE - 1, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4,
        frameon=False,
    )  # fmt: skip
    if found.rule:
        rule = found.rule.replace("; ", ";\n")
        figure.supxlabel(rule, fontsize=LABEL_SIZE - 2, color=NOTE_COLOUR)
    quiet_frame(axes)
    return figure


def plot_history(history: History, *, source: str) -> Figure:
    """Accuracy and loss of the training and test images, epoch by epoch.

    Args:
        history: of a training; what was not evaluated is left out.
        source: where the images come from.
    """
    figure, epochs = new_figure("Accuracy and loss", source, 13, 5), history.epochs
    if not epochs:
        return no_data(figure)
    left, right = figure.subplots(1, 2)
    _plot_epochs(left, epochs, "accuracy", ".2%")
    _plot_epochs(right, epochs, "loss", ".3f")
    left.set_ylabel("accuracy", fontsize=LABEL_SIZE)
    percent_axis(left.yaxis)
    right.set_ylabel("cross-entropy (nats)", fontsize=LABEL_SIZE)
    return figure


def _plot_epochs(axes: Axes, epochs: Sequence[EpochRecord], quantity: str, form: str) -> None:
    numbers, curves = [record.epoch for record in epochs], []
    # Told apart in grey too.
    for split, colour, line in (("train", TRAIN_COLOUR, "o--"), ("test", TEST_COLOUR, "s-")):
        values = [getattr(record, f"{split}_{quantity}") for record in epochs]
        if values[-1] is not None:
            curves.append((values, colour))
            axes.plot(
                numbers, values, line, color=colour, linewidth=2, markersize=4,
                label=f"{split}, last epoch: {values[-1]:{form}}",
            )  # fmt: skip
    span = calm_span([values for values, _ in curves]) if quantity == "loss" else None
    if span:
        axes.set_ylim(span)
        for values, colour in curves:
            mark_above(axes, numbers, values, colour)
    axes.set_xlabel("epoch", fontsize=LABEL_SIZE)
    axes.set_xticks(whole_ticks(numbers[0], numbers[-1]))
    axes.legend(  # under the axis, for the curves may be anywhere
        fontsize=LABEL_SIZE - 1, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2,
        frameon=False,
    )  # fmt: skip
    quiet_frame(axes)


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
