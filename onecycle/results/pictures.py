"""What a network makes of pictures: the classes that it gives them, and a figure of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from onecycle.errors import UsageError

BATCH_SIZE = 256
MOST_ROWS = 24
"""A figure shows so many pictures at most."""

FIRST_COLOUR, OTHER_COLOUR = "#0072B2", "#9A9A9A"


class Guess(NamedTuple):
    """A class that a picture may show."""

    label: str
    probability: float
    """0..1"""


@torch.no_grad()
def predict_pictures(
    model: nn.Module,
    pictures: Sequence[np.ndarray] | np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str],
    top: int = 5,
) -> list[list[Guess]]:
    """The most probable classes of each picture, the most probable first.

    Args:
        model: (N, 3, 32, 32) to (N, K) log-probabilities, on any device.
        pictures: (N, 32, 32, 3) uint8.
        mean: of each channel, 0..1, as the network's training images were normalised.
        std: of each channel, 0..1.
        classes: the K class names.
        top: how many guesses a picture, 1 or more; K where there are fewer classes.

    Raises:
        UsageError: ``top`` is below 1, or the network has another number of classes.
    """
    if top < 1:
        raise UsageError(f"top is {top}; it must be 1 or more")
    was_training, first = model.training, next(model.parameters())
    mean, std = (torch.tensor(tuple(numbers)).reshape(3, 1, 1) for numbers in (mean, std))
    guesses = []
    model.eval()
    try:
        for start in range(0, len(pictures), BATCH_SIZE):
            batch = torch.from_numpy(np.stack(pictures[start : start + BATCH_SIZE]))
            images = (batch.permute(0, 3, 1, 2).float() / 255 - mean) / std
            output = model(images.to(first.device, first.dtype)).float().cpu()
            if output.shape[1] != len(classes):
                raise UsageError(
                    f"the network has {output.shape[1]} classes and {len(classes)} names were "
                    "given; they belong together"
                )
            best = output.exp().topk(min(top, len(classes)))
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                guesses.append([Guess(classes[i], p) for i, p in zip(indices, values, strict=True)])
    finally:
        model.train(was_training)
    return guesses


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
    figure = Figure(figsize=(8, 0.9 + 2.2 * max(rows, 1)), layout="constrained")
    shown = f", the first {rows} of {len(pictures)} pictures" if rows < len(pictures) else ""
    figure.suptitle(f"Trained on {source}{shown}", fontsize=11, parse_math=False)
    if not rows:
        figure.text(0.5, 0.5, "no data", ha="center", va="center", fontsize=16)
        return figure
    panels = figure.subplots(rows, 2, squeeze=False, width_ratios=(2, 3))
    for (left, right), picture, best, name in zip(panels, pictures, guesses, names, strict=False):
        left.imshow(picture, interpolation="nearest")
        left.set_axis_off()
        left.set_title(_shorten(name), fontsize=10, parse_math=False)
        values = [guess.probability for guess in best]
        colours = [FIRST_COLOUR, *[OTHER_COLOUR] * (len(best) - 1)]
        bars = right.barh(range(len(best)), values, color=colours)
        right.bar_label(bars, [f"{value:.1%}" for value in values], padding=3, fontsize=9)
        labels = [_shorten(guess.label) for guess in best]
        right.set_yticks(range(len(best)), labels, parse_math=False)
        right.invert_yaxis()
        right.set_xlim(0, 1.15)  # room for the figure behind a full bar
        right.set_xticks([])
        right.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def _shorten(name: str, most: int = 30) -> str:
    name = name.encode("utf-8", "replace").decode()  # a file name need not be text
    return name if len(name) <= most else f"…{name[1 - most :]}"
