"""Networks. ``from models import CustomResNet``."""

from .custom_resnet import CustomResNet

__all__ = ["CustomResNet"]
