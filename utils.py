"""Helpers of a training from the package ``onecycle``, under one name."""

from onecycle.data.dataset import get_stats
from onecycle.modules import model_summary
from onecycle.training.compute import set_seed, to_device
from onecycle.training.loop import evaluate, fit, predict

__all__ = [
    "evaluate", "fit", "get_stats", "model_summary", "predict", "set_seed", "to_device",
]  # fmt: skip
