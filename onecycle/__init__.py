"""Train, judge and show small image classifiers.

    from models import CustomResNet
    from onecycle import Run, load_digits

    Run("runs/digits", load_digits(), CustomResNet).save()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.3.0"

_HOME = {
    "CheckpointError": "errors",
    "DataError": "errors",
    "DivergedError": "errors",
    "ImageDataset": "data.dataset",
    "PRESETS": "recipe",
    "Recipe": "recipe",
    "Run": "run",
    "RunError": "errors",
    "StorageError": "errors",
    "UsageError": "errors",
    "WorkerError": "errors",
    "load_cifar10": "data.cifar10",
    "load_digits": "data.digits",
    "load_folder": "data.folder",
    "load_weights": "results.weights",
}
__all__ = ["__version__", *_HOME]

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


def __getattr__(name: str) -> object:  # so that a command's help does not wait for torch
    if name not in _HOME:
        raise AttributeError(f"module 'onecycle' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onecycle.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
