"""Networks. ``from models import CustomResNet``."""

from models.custom_resnet import CustomResNet

__all__ = ["CustomResNet"]
