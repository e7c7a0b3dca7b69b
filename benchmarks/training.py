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
from onecycle import ImageDataset, Recipe, load_cifar10, load_digits
from onecycle.data.augmentation import get_test_batch_transform
from onecycle.data.dataset import CIFAR10_CLASSES
from onecycle.data.loaders import ResidentLoader
from onecycle.errors import UsageError
from onecycle.modules import freeze_idle_biases
from onecycle.optim.lr_finder import find_lr
from onecycle.run_parts import OPTIMIZERS, choose_rates, make_loader, one_cycle_of
from onecycle.training.compute import Compute, set_seed
from onecycle.training.loop import fit, predict
from transformation import get_train_aug_transform

EVALUATED_AT_ONCE = 500
KINDS = ("batched", "albumentations")
"""Of the training input."""
AUGMENTATION = ("alternating_flip", "cutout_size_px", "padding")
"""The recipe's fields that only the batched input takes."""


def random_images(count: int, seed: int = 0) -> ImageDataset:
    """Noise: for speeds, which do not depend on what an image shows."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageDataset(images, np.arange(count) % 10, CIFAR10_CLASSES, "random images")


def load_images(data_dir: str | None, count: int) -> tuple[ImageDataset, ImageDataset]:
    """Training and test images; noise if no folder is given, ``count`` and 1,000 of it."""
    if data_dir is None:
        return random_images(count), random_images(1000, seed=1)
    return load_digits() if data_dir == "digits" else load_cifar10(data_dir)


def check_input(recipe: Recipe, images: ImageDataset, kind: str) -> None:
    """Refuse what could not be trained as the recipe says."""
    if recipe.batch_size > len(images):
        raise UsageError(
            f"batch_size is {recipe.batch_size}, more than the {len(images)} training images"
        )
    for name in AUGMENTATION:
        if kind != "batched" and getattr(recipe, name) != getattr(Recipe(), name):
            raise UsageError(f"{name} is {getattr(recipe, name)}; it needs the batched input")


def train_loader(
    images: ImageDataset, recipe: Recipe, compute: Compute, *, kind: str = "batched", workers: int = 0
):
    """Augmented training batches: "batched" on the device, or "albumentations" image by image."""
    augment = None
    if kind != "batched":
        augment = get_train_aug_transform(
            images.mean, images.std, flip_probability=recipe.flip_probability
        )
    return make_loader(
        (images, images), recipe, compute, train=True, shared=False, augment=augment, workers=workers
    )


def test_loader(images: ImageDataset, like: ImageDataset, compute: Compute):
    """Normalised batches, in order."""
    transform = get_test_batch_transform(images.data, like.mean, like.std, device=compute.device)
    return ResidentLoader(
        transform, images.targets, EVALUATED_AT_ONCE, device=compute.device, train=False
    )


@dataclasses.dataclass
class Parts:
    """What a training is made of, before its first step."""

    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer


def make_parts(recipe: Recipe, compute: Compute, train: ImageDataset) -> Parts:
    """Network, loss and optimizer of a recipe, seeded; ``train`` is what it is prepared for."""
    set_seed(recipe.seed)
    model = compute.place_model(CustomResNet(len(train.classes)))
    freeze_idle_biases(model)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    return Parts(model, criterion, OPTIMIZERS[recipe.optimizer](model, recipe, train, compute))


def fit_parts(
    parts: Parts,
    loader,
    recipe: Recipe,
    compute: Compute,
    *,
    finding,
    on_epoch: Callable[[Any], None] | None = None,
):
    """``fit`` over the whole cycle of a recipe, without evaluation: the history.

    Raises:
        KeyboardInterrupt: out of ``on_epoch`` too, which ``fit`` would take for a wish to stop: the
            part of a training is no result.
    """
    scheduler = one_cycle_of(parts.optimizer, recipe, finding, len(loader))
    callbacks = [_Epochs(on_epoch)] if on_epoch else []
    history = fit(
        parts.model, loader, None, parts.optimizer, scheduler, parts.criterion,
        epochs=recipe.epochs, compute=compute, callbacks=callbacks,
    )  # fmt: skip
    if len(history.epochs) < recipe.epochs:
        raise KeyboardInterrupt
    return history


class _Epochs:
    def __init__(self, on_epoch: Callable[[Any], None]) -> None:
        self.on_epoch = on_epoch


def warm_up(recipe: Recipe, train: ImageDataset, compute: Compute) -> None:
    """Compile for the two batch shapes of an epoch, on a twin; what follows finds it done."""
    size = recipe.batch_size
    few = train.subset(range(size + len(train) % size)) if len(train) > 2 * size else train
    short = dataclasses.replace(recipe, epochs=3, peak_epoch=None, lr_min=None, lr_max=1e-3)
    parts = make_parts(short, compute, train)
    fit_parts(
        parts, train_loader(few, short, compute), short, compute,
        finding=choose_rates(short, None),
    )  # fmt: skip


def train_once(
    recipe: Recipe,
    train: ImageDataset,
    test: ImageDataset,
    compute: Compute,
    *,
    kind: str = "batched",
    on_epoch: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Train by a recipe and evaluate once, after the last epoch: a run of a results file.

    Raises:
        DivergedError: the loss is not finite.
        UsageError: the range test says nothing, or the recipe does not go with the images.
    """
    device = compute.device
    begin = now(device)
    if device.type == "cuda":
        warm_up(recipe, train, compute)
    compiled = now(device)
    loader = train_loader(train, recipe, compute, kind=kind)
    parts = make_parts(recipe, compute, train)
    found, swept = None, {}
    if recipe.lr_max is None:
        found = find_lr(
            parts.model, parts.optimizer, parts.criterion, loader,
            start_lr=recipe.finder_start_lr, end_lr=recipe.finder_end_lr,
            num_steps=recipe.finder_steps, ratio=recipe.lr_ratio, autocast_dtype=compute.dtype,
        )  # fmt: skip
        # Its rates follow from the recipe; from both, what another rule would have found.
        swept = {"range_test": [round(x, 4) for x in found.losses]}
    finding = choose_rates(recipe, found)
    ready = now(device)
    history = fit_parts(parts, loader, recipe, compute, finding=finding, on_epoch=on_epoch)
    trained = now(device)
    predicted = predict(
        parts.model, test_loader(test, train, compute), compute=compute, mirrored=True
    )
    return {
        "seed": recipe.seed,
        "lr_max": finding.lr_max,
        **swept,
        "accuracy": predicted.accuracy,
        "accuracy_mirrored": predicted.mirrored_accuracy,
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
