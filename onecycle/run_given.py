"""What people give in place of a run's parts: the form that it must have, and what it is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from onecycle.data.dataset import ImageDataset, Images
from onecycle.data.listing import pictures_below
from onecycle.errors import UsageError
from onecycle.modules import in_words, name_of
from onecycle.recipe import Recipe
from onecycle.training.stepping import is_per_epoch


def check_given(data: Any, recipe: Any) -> Images:
    """The images of a run, if they and its recipe are what ``Run`` takes.

    Raises:
        UsageError: they are something else.
    """
    parts = [*data] if isinstance(data, (tuple, list)) else [data]
    if len(parts) != 2 or not all(isinstance(part, ImageDataset) for part in parts):
        found = " and ".join(type(part).__name__ for part in parts[:3]) or "nothing"
        raise UsageError(
            f"data is {found}; give two of ImageDataset, to train on and to evaluate on, such as "
            "load_folder(...) or ImageDataset(images, labels, classes, source).hold_out(100); "
            "fit takes any other loader"
        )
    if not isinstance(recipe, Recipe):
        raise UsageError(
            f"recipe is of type {type(recipe).__name__}; give a Recipe, such as Recipe(epochs=24)"
        )
    return parts[0], parts[1]


def check_criterion(given: Any) -> nn.Module | Callable:
    """The loss that was given, if it is one.

    Raises:
        UsageError: it is a class, or no function.
    """
    if isinstance(given, type) or not callable(given):
        raise UsageError(
            f"criterion is {in_words(given)}; give a loss of (output, labels), such as "
            "nn.CrossEntropyLoss()"
        )
    return given


def check_step_scheduler(scheduler: Callable | None, step_scheduler: str) -> None:
    """Refuse the recipe's own schedule, which is one of steps, if it is to be stepped per epoch.

    Raises:
        UsageError: as said, or ``step_scheduler`` is none of its words.
    """
    if is_per_epoch(None, step_scheduler) and scheduler is None:
        raise UsageError(
            "step_scheduler is 'epoch', and the recipe's one cycle is stepped after every batch: "
            "give a scheduler, or leave it out"
        )


def names_of(**given: Any) -> dict[str, str]:
    """What is given in place of the recipe's parts, by name; what is None is left out."""
    return {part: name_of(value) for part, value in given.items() if value is not None}


def given_pictures(pictures: Any) -> Sequence[Any]:
    """The pictures to classify, one by one: those of a folder, or what a list has.

    Raises:
        DataError: the folder has none.
        UsageError: a single picture is given.
    """
    if isinstance(pictures, (str, os.PathLike)) and Path(pictures).is_dir():
        return pictures_below(pictures)
    if isinstance(pictures, (str, bytes, os.PathLike)):
        raise UsageError(f"pictures is the file {pictures}; give a list, such as [file]")
    if isinstance(pictures, Image.Image):
        raise UsageError("pictures is a single picture; give a list, such as [picture]")
    return pictures
