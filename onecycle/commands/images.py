"""The images that a command line names."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onecycle.commands.options import check_data
from onecycle.recipe import Recipe
from onecycle.training.progress import progress_bar

if TYPE_CHECKING:
    from onecycle.data.dataset import ImageDataset, Images
    from onecycle.training.group import Group


def load_dataset(args: argparse.Namespace, recipe: Recipe) -> Images:
    """All training images and all images to evaluate on, of the recipe's size."""
    from onecycle.data.cifar10 import load_cifar10
    from onecycle.data.digits import load_digits

    size = {} if recipe.image_size is None else {"image_size": recipe.image_size}
    if args.dataset == "digits":
        return load_digits(**size)
    with progress_bar("loading images", "images") as progress:
        return load_cifar10(
            args.data_dir, download=args.download, resize=recipe.resize,
            **size, **_of_pictures(args, progress),
        )  # fmt: skip


def load_test(args: argparse.Namespace, image_size: int, resize: str) -> ImageDataset:
    """All images to evaluate on; of pictures nothing else is read."""
    from onecycle.data.cifar10 import holds_pictures, load_cifar10
    from onecycle.data.digits import load_digits
    from onecycle.data.folder import load_test_folder

    if args.dataset == "digits":
        return load_digits(image_size=image_size)[1]
    with progress_bar("loading images", "images") as progress:
        options = {"image_size": image_size, "resize": resize, **_of_pictures(args, progress)}
        if holds_pictures(args.data_dir, download=args.download):
            return load_test_folder(args.data_dir, **options)
        return load_cifar10(args.data_dir, download=args.download, **options)[1]


def _of_pictures(args: argparse.Namespace, progress: Callable) -> dict[str, Any]:
    names = ("val_share", "skip_unreadable", "cache_dir")
    return {"progress": progress} | {name: getattr(args, name) for name in names}


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
        train, test = load_dataset(args, args.recipe)
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
        images.mean, images.std,
        flip_probability=recipe.flip_probability, size_px=images.size_px, padding=recipe.padding,
    )  # fmt: skip
