"""Data sets and loaders, from the package ``onecycle``.

ImageDataset: images in memory with labels, class names and source.
load_cifar10: training and test images of CIFAR-10, downloaded if allowed.
load_folder: your own pictures, from folders named after the classes or a CSV file.
load_digits: scikit-learn's handwritten digits, offline.
Cifar10Dataset: one split of CIFAR-10's official files.
CIFAR10_CLASSES: its ten class names.
read_picture: one picture file as a square image.
stratified_order: a shuffled order that keeps the classes in their proportions.
ResidentLoader: batches of images that are kept on the device, the fast way.
get_loader: batches through a transform per image, with worker processes.
"""

from onecycle.data.cifar10 import Cifar10Dataset, load_cifar10
from onecycle.data.dataset import CIFAR10_CLASSES, ImageDataset, stratified_order
from onecycle.data.digits import load_digits
from onecycle.data.folder import load_folder
from onecycle.data.loaders import ResidentLoader, get_loader
from onecycle.data.pictures import read_picture

__all__ = [
    "CIFAR10_CLASSES", "Cifar10Dataset", "ImageDataset", "ResidentLoader", "get_loader",
    "load_cifar10", "load_digits", "load_folder", "read_picture", "stratified_order",
]  # fmt: skip
