"""The images of a command line, and the batches of its run."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from onecycle.commands.common import say
from onecycle.data.augmentation import get_test_batch_transform
from onecycle.data.cifar10 import load_cifar10
from onecycle.data.dataset import ImageDataset
from onecycle.data.digits import load_digits
from onecycle.data.loaders import ResidentLoader, fits_device, get_loader
from onecycle.errors import UsageError
from onecycle.recipe import Recipe
from onecycle.training.group import Group
from onecycle.training.progress import progress_bar
from onecycle.training_parts import Normal, make_augmentation
from transformation import get_test_aug_transform, get_train_aug_transform


def load_dataset(args: argparse.Namespace) -> tuple[ImageDataset, ImageDataset]:
    """All training images and all test images."""
    if args.dataset == "digits":
        return load_digits()
    with progress_bar("CIFAR-10", sys.stderr) as progress:
        return load_cifar10(args.data_dir, download=args.download, progress=progress)


def load_images(args: argparse.Namespace) -> tuple[ImageDataset, ImageDataset, str]:
    """Training images, images to evaluate on, and what the latter are."""
    train, test = load_dataset(args)
    name = "test images"
    if args.val is not None:
        in_range("val", args.val, len(train) - 2)
        train, test = train.hold_out(args.val)
        name = "held-out training images"
    in_range("limit-train", args.limit_train, len(train))
    in_range("limit-test", args.limit_test, len(test))
    return train.sample(args.limit_train), test.sample(args.limit_test), name


def in_range(option: str, value: int | None, most: int | None) -> None:
    """Refuse a number of images; ``most`` is None as long as no image is loaded."""
    if value is not None and (value < 1 or (most is not None and value > most)):
        allowed = "1 or more" if most is None else f"from 1 to {most:,}"
        raise UsageError(f"--{option} is {value}; it must be {allowed}")


def make_loaders(
    args: argparse.Namespace,
    recipe: Recipe,
    group: Group,
    train: ImageDataset,
    test: ImageDataset,
    normal: Normal,
) -> tuple[Any, Any, Any]:
    """Training batches, training batches for the range test, and batches to evaluate on."""
    num_bytes = 2 * (train.data.nbytes + test.data.nbytes)
    batched, device = args.augmentation == "batched", group.device
    lacking = group.sum(torch.tensor(int(not fits_device(num_bytes, device)), device=device))
    if batched and lacking:  # for one process, and so for all
        size = f"the images ({num_bytes / 1e9:.1f} GB) do not fit {device}"
        if recipe.optimizer != "adam":
            raise UsageError(f"{size}, where the speedrun needs them; take fewer: --limit-train")
        say(f"{size}: albumentations instead")
        batched = False
    if batched and args.workers:
        say(
            "--workers has no effect: nothing is loaded while training, the images are on the device"
        )
    if batched:
        augment = make_augmentation(recipe, train, normal, device)
        normalise = get_test_batch_transform(test.data, *normal, device=device)
    else:
        augment = get_train_aug_transform(*normal, flip_probability=recipe.flip_probability)
        normalise = get_test_aug_transform(*normal)

    def load(is_train: bool, **sharing: int):
        images, transform = (train, augment) if is_train else (test, normalise)
        options = {"train": is_train, "seed": recipe.seed, "device": device} | sharing
        if batched:
            return ResidentLoader(transform, images.targets, recipe.batch_size, **options)
        images = images.with_transform(transform)
        return get_loader(images, recipe.batch_size, num_workers=args.workers, **options)

    sharing = {"rank": group.rank, "world_size": group.world_size}
    return load(True, **sharing), load(True), load(False, **sharing)
