"""The images that a command line names."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from onecycle.commands.options import check_data
from onecycle.recipe import Recipe
from onecycle.training.progress import progress_bar

if TYPE_CHECKING:
    from onecycle.data.dataset import ImageDataset, Images
    from onecycle.training.group import Group


def load_dataset(args: argparse.Namespace) -> Images:
    """All training images and all test images."""
    from onecycle.data.cifar10 import load_cifar10
    from onecycle.data.digits import load_digits

    if args.dataset == "digits":
        return load_digits()
    with progress_bar("loading images", "images") as progress:
        return load_cifar10(args.data_dir, download=args.download, progress=progress)


def load_images(args: argparse.Namespace, group: Group | None = None) -> Images:
    """Images to train on and images to evaluate on, as many as the options say.

    Args:
        args: with the options of the images.
        group: of its processes on a machine the first loads the images before the others, which
            then find them downloaded and decoded.

    Raises:
        DataError: images are missing or damaged.
        UsageError: an option asks for more images than there are.
    """
    with group.one_by_machine_first() if group else contextlib.nullcontext():
        train, test = load_dataset(args)
    if args.val is not None:
        check_data(args, {"val": len(train) - 2})
        train, test = train.hold_out(args.val)
    check_data(args, {"limit_train": len(train), "limit_test": len(test)})
    return train.sample(args.limit_train), test.sample(args.limit_test)


def make_augmentation(
    args: argparse.Namespace, recipe: Recipe, images: ImageDataset
) -> Callable | None:
    """What ``Run`` takes as ``augment``: None for whole batches on the device."""
    if args.augmentation == "batched":
        return None
    from transformation import get_train_aug_transform

    return get_train_aug_transform(
        images.mean, images.std, flip_probability=recipe.flip_probability
    )
