"""Data sets and loaders of the package ``onecycle``, under one name."""

from onecycle.data.cifar10 import CIFAR10_CLASSES, Cifar10Dataset, load_cifar10
from onecycle.data.dataset import ImageDataset, stratified_order
from onecycle.data.digits import load_digits

__all__ = [
    "CIFAR10_CLASSES", "Cifar10Dataset", "ImageDataset", "load_cifar10", "load_digits",
    "stratified_order",
]  # fmt: skip
