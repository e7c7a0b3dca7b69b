"""Networks and the files of their weights. ``from models import CustomResNet``."""

from .custom_resnet import CustomResNet, freeze_idle_biases
from .weights_file import WeightsFile, load_weights, save_weights

__all__ = ["CustomResNet", "WeightsFile", "freeze_idle_biases", "load_weights", "save_weights"]
