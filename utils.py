"""The helpers of a training, from the package ``onecycle``."""

from onecycle.data.dataset import get_stats  # mean and standard deviation of each channel
from onecycle.modules import model_summary  # torchsummary's table of the layers
from onecycle.optim.lr_finder import find_lr  # range test: LRMAX and LRMIN
from onecycle.optim.schedule import one_cycle  # the one-cycle schedule
from onecycle.training.compute import Compute  # device, precision, compiler, processes
from onecycle.training.compute import set_seed  # Python's, numpy's and torch's generators
from onecycle.training.compute import to_device  # a network on its device
from onecycle.training.loop import evaluate  # loss and accuracy
from onecycle.training.loop import fit  # train, and evaluate after each epoch
from onecycle.training.loop import predict  # probabilities of every class

__all__ = [
    "Compute", "evaluate", "find_lr", "fit", "get_stats", "model_summary", "one_cycle", "predict",
    "set_seed", "to_device",
]  # fmt: skip
