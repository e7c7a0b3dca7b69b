"""One training, as the benchmarks make it: images, input, network, loss and optimizer, the cycle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import now
from models import CustomResNet
from onecycle.data.augmentation import get_test_batch_transform
from onecycle.data.cifar10 import CIFAR10_CLASSES, load_cifar10
from onecycle.data.dataset import ImageDataset
from onecycle.data.digits import load_digits
from onecycle.data.folder import load_image_folder
from onecycle.data.loaders import ResidentLoader, get_loader
from onecycle.errors import UsageError
from onecycle.optim.lr_finder import find_lr
from onecycle.recipe import Recipe
from onecycle.training.compute import PRECISIONS, set_seed, to_device
from onecycle.training.loop import fit, predict
from onecycle.training_parts import (
    AUGMENTATION,
    make_augmentation,
    make_optimizer,
    make_scheduler,
    mean_and_std,
)
from transformation import get_train_aug_transform

EVALUATED_AT_ONCE = 500
KINDS = ("batched", "albumentations")
"""Of the training input."""


def random_images(count: int, seed: int = 0) -> ImageDataset:
    """Noise: for speeds, which do not depend on what an image shows."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageDataset(images, np.arange(count) % 10, CIFAR10_CLASSES, "random images")


def load_images(data_dir: str | None, count: int) -> tuple[ImageDataset, ImageDataset]:
    """Training and test images; noise where no folder is given, ``count`` and 1,000 of it."""
    if data_dir is None:
        return random_images(count), random_images(1000, seed=1)
    if data_dir == "digits":
        return load_digits()
    return load_cifar10(data_dir, load_folder=load_image_folder)


def check_input(recipe: Recipe, images: ImageDataset, kind: str) -> None:
    """Refuse what could not be trained as the recipe says."""
    if recipe.batch_size > len(images):
        raise UsageError(
            f"batch_size is {recipe.batch_size}, more than the {len(images)} training images"
        )
    for name in set(AUGMENTATION) - {"flip_probability"}:
        if kind != "batched" and getattr(recipe, name) != getattr(Recipe(), name):
            raise UsageError(f"{name} is {getattr(recipe, name)}; it needs the batched input")


def train_loader(
    images: ImageDataset,
    recipe: Recipe,
    device: torch.device,
    *,
    kind: str = "batched",
    workers: int = 0,
):
    """Augmented training batches: "batched" on the device, or "albumentations" image by image."""
    normal = mean_and_std(images)
    if kind == "batched":
        transform = make_augmentation(recipe, images, normal, device)
        return ResidentLoader(
            transform, images.targets, recipe.batch_size,
            device=device, train=True, seed=recipe.seed,
        )  # fmt: skip
    transform = get_train_aug_transform(*normal, flip_probability=recipe.flip_probability)
    return get_loader(
        images.with_transform(transform), recipe.batch_size,
        train=True, seed=recipe.seed, num_workers=workers, device=device,
    )  # fmt: skip


def test_loader(images: ImageDataset, normalised_as: ImageDataset, device: torch.device):
    """Normalised batches, in order."""
    transform = get_test_batch_transform(images.data, *mean_and_std(normalised_as), device=device)
    return ResidentLoader(transform, images.targets, EVALUATED_AT_ONCE, device=device, train=False)


@dataclasses.dataclass
class Parts:
    """What a training is made of, before its first step."""

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer


def make_parts(
    recipe: Recipe,
    device: torch.device,
    *,
    train: ImageDataset | None = None,
    lr: float = 1e-3,
    compile_mode: str | None = None,
) -> Parts:
    """Network, loss and optimizer of a recipe, seeded; ``train`` is what it is prepared for."""
    set_seed(recipe.seed)
    model = to_device(CustomResNet(len(train.classes) if train else 10), device)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    normal = mean_and_std(train) if train else None  # looked at by the speedrun alone
    optimizer = make_optimizer(recipe, model, train, normal, lr=lr, compile_mode=compile_mode)
    return Parts(model, criterion, optimizer)


def fit_parts(
    parts: Parts,
    loader,
    recipe: Recipe,
    *,
    lr_max: float,
    precision: str,
    compile_mode: str | None = None,
    on_epoch: Callable[[Any], None] | None = None,
):
    """``utils.fit`` over the whole cycle of a recipe, without evaluation: the history.

    Raises:
        KeyboardInterrupt: out of ``on_epoch`` too, which ``fit`` would take for a wish to stop: the
            part of a training is no result.
    """
    lr_min = lr_max / recipe.lr_ratio if recipe.lr_min is None else recipe.lr_min
    scheduler = make_scheduler(recipe, parts.optimizer, loader, lr_max=lr_max, lr_min=lr_min)
    history = fit(
        parts.model, loader, None, parts.optimizer, scheduler, parts.criterion,
        epochs=recipe.epochs, precision=precision, compile_mode=compile_mode, on_epoch=on_epoch,
    )  # fmt: skip
    if len(history.epochs) < recipe.epochs:
        raise KeyboardInterrupt
    return history


def warm_up(recipe: Recipe, train: ImageDataset, device, precision: str, compile_mode) -> None:
    """Compile for the two batch shapes of an epoch, on a twin; what follows finds it done."""
    size = recipe.batch_size
    few = train.subset(range(size + len(train) % size)) if len(train) > 2 * size else train
    short = dataclasses.replace(recipe, epochs=3, peak_epoch=None, lr_min=None)
    loader = train_loader(few, short, device)
    parts = make_parts(short, device, train=train, compile_mode=compile_mode)
    fit_parts(parts, loader, short, lr_max=1e-3, precision=precision, compile_mode=compile_mode)


def train_once(
    recipe: Recipe,
    train: ImageDataset,
    test: ImageDataset,
    *,
    device: torch.device,
    precision: str,
    compile_mode: str | None = None,
    kind: str = "batched",
    on_epoch: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Train by a recipe and evaluate once, after the last epoch: a run of a results file.

    Raises:
        DivergedError: the loss is not finite.
        UsageError: the range test says nothing, or the recipe does not go with the images.
    """
    begin = now(device)
    if device.type == "cuda":
        warm_up(recipe, train, device, precision, compile_mode)
    compiled = now(device)
    loader = train_loader(train, recipe, device, kind=kind)
    parts = make_parts(
        recipe, device, train=train, lr=recipe.finder_start_lr, compile_mode=compile_mode
    )
    lr_max, swept = recipe.lr_max, {}
    if lr_max is None:
        finding = find_lr(
            parts.model, parts.optimizer, parts.criterion, loader,
            start_lr=recipe.finder_start_lr, end_lr=recipe.finder_end_lr,
            num_steps=recipe.finder_steps, ratio=recipe.lr_ratio,
            autocast_dtype=PRECISIONS[precision],
        )  # fmt: skip
        # Its rates follow from the recipe; from both, what another rule would have found.
        lr_max, swept = finding.lr_max, {"range_test": [round(x, 4) for x in finding.losses]}
    ready = now(device)
    history = fit_parts(
        parts, loader, recipe, lr_max=lr_max, precision=precision, compile_mode=compile_mode,
        on_epoch=on_epoch,
    )  # fmt: skip
    trained = now(device)
    evaluated = test_loader(test, train, device)
    found = predict(parts.model, evaluated, precision=precision, mirrored=True)
    return {
        "seed": recipe.seed,
        "lr_max": lr_max,
        **swept,
        "accuracy": found.accuracy,
        "accuracy_mirrored": found.mirrored_accuracy,
        "train_accuracy": history.epochs[-1].train_accuracy,
        "train_loss": history.epochs[-1].train_loss,
        "train_accuracy_by_epoch": [round(epoch.train_accuracy, 5) for epoch in history.epochs],
        "seconds": {
            "compiling": compiled - begin,
            "preparation": ready - compiled,
            "training": trained - ready,
            "by_epoch": [round(epoch.train_seconds, 4) for epoch in history.epochs],
            "evaluation": now(device) - trained,
        },
    }
