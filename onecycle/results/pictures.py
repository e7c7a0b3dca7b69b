"""What a network makes of pictures: the classes that it gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from onecycle.errors import UsageError
from onecycle.modules import eval_mode
from onecycle.outputs import Classifier, probabilities

BATCH_SIZE = 256


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
        model: (N, 3, S, S) to (N, K) logits, log-probabilities or probabilities, or a dictionary or
            an object with ``logits``; on any device; each of its modules stays in its mode.
        pictures: (N, S, S, 3) uint8.
        mean: of each channel, 0..1, as the network's training images were normalised.
        std: of each channel, 0..1.
        classes: the K class names.
        top: guesses per picture, 1 or more; K if there are fewer classes.

    Raises:
        UsageError: ``top`` is below 1, the pictures are of another form, the network has another
            number of classes, or it does not take such pictures.
    """
    if top < 1:
        raise UsageError(f"top is {top}; it must be 1 or more")
    first = next(model.parameters())
    mean, std = (torch.tensor(tuple(numbers)).reshape(3, 1, 1) for numbers in (mean, std))
    guesses, scores_of = [], Classifier(model)
    with eval_mode(model):
        for start in range(0, len(pictures), BATCH_SIZE):
            batch = torch.from_numpy(_stacked(pictures[start : start + BATCH_SIZE]))
            images = (batch.permute(0, 3, 1, 2).float() / 255 - mean) / std
            output = scores_of(images.to(first.device, first.dtype)).cpu()
            if output.shape[1] != len(classes):
                raise UsageError(
                    f"the network has {output.shape[1]} classes and {len(classes)} names were "
                    "given; they belong together"
                )
            best = probabilities(output).topk(min(top, len(classes)))
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                guesses.append([Guess(classes[i], p) for i, p in zip(indices, values, strict=True)])
    return guesses


def _stacked(pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    try:
        batch = np.stack(pictures)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the pictures are not of one size ({error}); resize them") from error
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
        raise UsageError(
            f"the pictures are {batch.dtype} of shape {batch.shape}; give (N, S, S, 3) uint8 with "
            "values 0..255"
        )
    return batch
