"""What a run starts from: numbers that fit its images, and weights of an earlier training."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from onecycle.data.dataset import IMAGE_SIZE_PX, ImageDataset, Images
from onecycle.data.loaders import fitting_batch_size
from onecycle.errors import CheckpointError, UsageError
from onecycle.modules import last_layer
from onecycle.recipe import Recipe
from onecycle.results.weights import PUBLISHED, WeightsFile, load_weights

NO_IMAGES = "no images"
START_LR = 0.004
"""LRMAX for a network that starts from weights, with Adam. A range test would measure how fast the
new last layer learns. Chosen on held-out pictures (benchmarks/results/small_sets.json)."""


def fit_to_images(recipe: Recipe, images: ImageDataset) -> tuple[Recipe, list[str]]:
    """Choose what the recipe leaves open.

    Args:
        recipe: what is None in it is chosen; what is given stays.
        images: to train on.

    Returns:
        The recipe with epochs, batch size, image size and cut-out, and why, in lines for the log.

    Raises:
        UsageError: the images have another size than the recipe.
    """
    count, size, reasons, chosen = len(images), images.size_px, [], {}
    if recipe.image_size is None:
        chosen["image_size"] = size
    elif recipe.image_size != size:
        raise UsageError(
            f"image_size is {recipe.image_size} and the images are {size}x{size}; load them with "
            f"image_size={recipe.image_size}, or leave it out of the recipe"
        )
    if recipe.cutout_size_px is None:
        chosen["cutout_size_px"] = size // 4
    if recipe.batch_size is None:
        chosen["batch_size"] = batch_size = min(512, fitting_batch_size(count))
        if batch_size < 512:
            steps = max(1, count // batch_size)
            reasons.append(
                f"batch_size {batch_size}: {steps} steps per epoch with {count:,} images"
            )
    if recipe.epochs is None:
        chosen["epochs"] = epochs = epochs_for(count)
        if epochs != 24:
            reasons.append(f"epochs {epochs}: few images need more passes")
    return dataclasses.replace(recipe, **chosen), reasons


def no_images(data: Mapping[str, Any], recipe: Recipe) -> Images:
    """What stands for the images of a finished run where none are given.

    Args:
        data: what the run says of its images.
        recipe: of the run.
    """
    size, count = recipe.image_size or IMAGE_SIZE_PX, 3 * recipe.batch_size
    black = np.broadcast_to(np.uint8(0), (count, size, size, 3))
    labels = np.arange(count) % len(data["classes"])
    images = ImageDataset(black, labels, data["classes"], data["source"], name=NO_IMAGES)
    return images, images


def check_images(images: ImageDataset) -> None:
    """Refuse what :func:`no_images` made.

    Raises:
        UsageError: the run was opened without its images.
    """
    if images.name == NO_IMAGES:
        raise UsageError("the run was opened without images; give them: Run.load(folder, data)")


def epochs_for(count: int) -> int:
    """Epochs for a number of training images: 24, and up to 60 for fewer than 8,000."""
    return int(np.clip(round(24 * (8000 / count) ** 0.25), 24, 60))


def start_from_weights(
    model: nn.Module, init: str | os.PathLike, images: ImageDataset, recipe: Recipe
) -> WeightsFile | None:
    """Give a network the weights that it starts from.

    If the file has the same classes, all weights are taken; else all but the last layer's.

    Args:
        model: for the images' classes; changed in place.
        init: "auto", "none", a file of weights, or the folder of its run. Auto takes the published weights for your own
            pictures, if they fit the network.
        images: to train on.
        recipe: of the run.

    Returns:
        What was taken, or None.

    Raises:
        CheckpointError: the file is missing, damaged or of another network.
        UsageError: the optimizer initialises the network itself.
    """
    if str(init) == "none":
        return None
    is_asked = str(init) != "auto"
    if not is_asked and not _published_helps(images, recipe):
        return None
    if recipe.optimizer == "muon":
        raise UsageError("optimizer muon initialises the network itself; leave out init (--init)")
    if recipe.start != "default":
        raise UsageError(f"start is {recipe.start}, and init names weights; leave out one of them")
    weights = load_weights(init if is_asked else PUBLISHED)
    state, taken = model.state_dict(), dict(weights.state_dict)
    if weights.classes != tuple(images.classes):
        head = last_layer(model)
        for name in [name for name in taken if head is not None and name.startswith(f"{head}.")]:
            taken[name] = state[name]
    fits = taken.keys() == state.keys() and all(
        value.shape == state[name].shape for name, value in taken.items()
    )
    if fits:
        model.load_state_dict(taken)
        return weights
    if is_asked:
        raise CheckpointError(
            f"{init} is of another network than {type(model).__name__}; name a file of this one"
        )
    return None


def in_words(start: WeightsFile) -> str:
    """What a network starts from, for the log."""
    return (
        f"the network starts from {start.file.name}, trained on {start.source}; "
        'init="none" (--init none) starts from random weights'
    )


def check_steps(total: int) -> int:
    """The steps of a training, if its schedule can have so few.

    Raises:
        UsageError: they are fewer than 3.
    """
    if total < 3:
        raise UsageError(
            f"only {total} steps in all, and the schedule needs at least 3; "
            "raise epochs or lower batch_size"
        )
    return total


def _published_helps(images: ImageDataset, recipe: Recipe) -> bool:
    own_pictures = images.files is not None and not images.source.startswith("CIFAR-10")
    is_there = PUBLISHED.exists() and importlib.util.find_spec("safetensors") is not None
    fresh = recipe.optimizer != "adam" or recipe.start != "default"
    return own_pictures and is_there and not fresh
