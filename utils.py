"""Helpers of a training from the package ``onecycle``, under one name.

- ``set_seed``: seed the global generators of Python, numpy and torch.
- ``get_stats``: mean and standard deviation of each channel of the images.
- ``model_summary``: torchsummary's table of the layers.
- ``to_device``: move a network to its device.
- ``find_lr``: range test: the learning rates LRMAX and LRMIN.
- ``one_cycle``: the schedule between them.
- ``fit``: train, and evaluate after each epoch.
- ``evaluate``: mean loss and accuracy on a data set.
- ``predict``: probabilities of every class.
"""

from onecycle.data.dataset import get_stats
from onecycle.modules import model_summary
from onecycle.optim.lr_finder import find_lr
from onecycle.optim.schedule import one_cycle
from onecycle.training.compute import set_seed, to_device
from onecycle.training.inference import evaluate, predict
from onecycle.training.loop import fit

__all__ = [
    "evaluate", "find_lr", "fit", "get_stats", "model_summary", "one_cycle", "predict", "set_seed",
    "to_device",
]  # fmt: skip
