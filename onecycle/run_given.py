"""What people give in place of a run's parts: the form that it must have, and what it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from onecycle.data.dataset import ImageDataset, Images
from onecycle.errors import UsageError
from onecycle.recipe import Recipe
from onecycle.training.stepping import is_per_epoch

MADE = {
    "model": ("forward", "lambda classes: Net(classes); or a network, such as Net()"),
    "optimizer": (
        "param_groups",
        "lambda model, recipe: torch.optim.SGD(model.parameters(), lr=0.1)",
    ),
    "scheduler": (
        "step",
        "lambda optimizer, recipe, finding, steps_per_epoch: "
        "torch.optim.lr_scheduler.StepLR(optimizer, steps_per_epoch)",
    ),
}
"""What each part has that a given function makes, and an example of such a function."""


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


def check_maker(part: str, function: Any, *arguments: Any) -> None:
    """Refuse what cannot be called to make a part of a run; it is not called.

    Args:
        part: a name of ``MADE``.
        function: as it was given.
        arguments: as many as ``Run`` calls it with.

    Raises:
        UsageError: it is no function of these arguments.
    """
    expected = f"give a function, such as {MADE[part][1]}"
    if not callable(function) or hasattr(function, "state_dict") and part != "model":
        raise UsageError(f"{part} is {_in_words(function)}; {expected}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise UsageError(
            f"{part} is {_in_words(function)}, which does not take what it is called with "
            f"({error}); {expected}"
        ) from error
    except ValueError:  # of a built-in function the arguments are not known
        pass


def make(part: str, function: Any, *arguments: Any) -> Any:
    """A part of a run, made by the function that was given for it.

    Args:
        part: a name of ``MADE``.
        function: as it was given; its own errors stay as they are.
        arguments: what it is called with.

    Raises:
        UsageError: it is no function of these arguments, or makes something else.
    """
    check_maker(part, function, *arguments)
    made, (has, example) = function(*arguments), MADE[part]
    is_part = hasattr(made, has) and not isinstance(made, type)
    if not is_part and not (made is None and part == "scheduler"):
        raise UsageError(
            f"{part} {name_of(function)} gives {_in_words(made)}; give a function, such as {example}"
        )
    return made


def check_criterion(given: Any) -> nn.Module | Callable:
    """The loss that was given, if it is one.

    Raises:
        UsageError: it is a class, or no function.
    """
    if isinstance(given, type) or not callable(given):
        raise UsageError(
            f"criterion is {_in_words(given)}; give a loss of (output, labels), such as "
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


def name_of(given: Any) -> str:
    """What a network, a function or an augmentation is called where its name must do."""
    if isinstance(given, str):
        return given
    if hasattr(given, "__name__"):  # a class or a function
        return given.__name__
    package = type(given).__module__.partition(".")[0]
    return package if package in ("albumentations", "torchvision") else type(given).__name__


def _in_words(given: Any) -> str:
    if given is None or isinstance(given, (str, int, float)):
        return repr(given)[:60]
    kind = "the class " if isinstance(given, type) else "" if callable(given) else "of type "
    return kind + name_of(given)
