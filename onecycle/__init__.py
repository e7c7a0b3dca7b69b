"""Train, evaluate and explain small image classifiers.

``Run`` is one training from images to report; ``Recipe`` has its numbers; ``load_cifar10``,
``load_folder`` and ``load_digits`` give its images. What is named here is imported when it is first
used, so ``from onecycle import Recipe`` does not wait for torch.

    from models import CustomResNet
    from onecycle import Run, load_digits

    Run("runs/digits", load_digits(), CustomResNet).save()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onecycle.data.cifar10 import load_cifar10
    from onecycle.data.dataset import ImageDataset
    from onecycle.data.digits import load_digits
    from onecycle.data.folder import load_folder
    from onecycle.errors import (
        CheckpointError,
        DataError,
        DivergedError,
        RunError,
        StorageError,
        UsageError,
        WorkerError,
    )
    from onecycle.recipe import PRESETS, Recipe
    from onecycle.results.weights import load_weights
    from onecycle.run import Run

__version__ = "0.6.0"

__all__ = [
    "CheckpointError", "DataError", "DivergedError", "ImageDataset", "PRESETS", "Recipe", "Run",
    "RunError", "StorageError", "UsageError", "WorkerError", "load_cifar10", "load_digits",
    "load_folder", "load_weights",
]  # fmt: skip

_HOMES = {
    "ImageDataset": "data.dataset",
    "PRESETS": "recipe",
    "Recipe": "recipe",
    "Run": "run",
    "load_cifar10": "data.cifar10",
    "load_digits": "data.digits",
    "load_folder": "data.folder",
    "load_weights": "results.weights",
}
"""Where a name is; the errors are in ``errors``."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'onecycle' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"onecycle.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
