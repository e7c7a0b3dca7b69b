"""Data sets and loaders, from the package ``onecycle``."""

from onecycle.data.cifar10 import Cifar10Dataset  # torchvision's CIFAR10 through a pipeline
from onecycle.data.cifar10 import load_cifar10  # official files, or pictures in train/ and test/
from onecycle.data.dataset import CIFAR10_CLASSES  # the ten names
from onecycle.data.dataset import ImageDataset  # images in memory with labels and class names
from onecycle.data.dataset import stratified_order  # every beginning holds the classes in proportion
from onecycle.data.digits import load_digits  # handwritten digits, offline
from onecycle.data.folder import load_folder  # own pictures in train/<class>/ and test/<class>/
from onecycle.data.folder import read_picture  # one picture as an image for the network
from onecycle.data.loaders import ResidentLoader  # batches made on the device
from onecycle.data.loaders import get_loader  # batches loaded image by image, in processes

__all__ = [
    "CIFAR10_CLASSES", "Cifar10Dataset", "ImageDataset", "ResidentLoader", "get_loader",
    "load_cifar10", "load_digits", "load_folder", "read_picture", "stratified_order",
]  # fmt: skip
