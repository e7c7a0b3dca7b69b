"""What a training by a recipe is made of: for the command line and the benchmarks alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from onecycle.data.augmentation import CIFAR10_MEAN, CIFAR10_STD, get_train_batch_transform
from onecycle.data.dataset import ImageDataset, get_stats
from onecycle.modules import freeze_idle_biases
from onecycle.optim.adam import get_optimizer
from onecycle.optim.muon import get_speedrun_optimizer, prepare_network
from onecycle.optim.schedule import one_cycle
from onecycle.recipe import Recipe

AUGMENTATION = ("flip_probability", "alternating_flip", "cutout_size_px", "padding")
"""The recipe's fields that the batched augmentation takes."""

Normal = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, 0..1."""


def mean_and_std(images: ImageDataset) -> Normal:
    """Those of CIFAR-10 for CIFAR-10, else the images' own."""
    if images.source.startswith("CIFAR-10"):
        return CIFAR10_MEAN, CIFAR10_STD
    return get_stats(images.data)


def make_augmentation(
    recipe: Recipe, images: ImageDataset, normal: Normal, device: torch.device
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The recipe's batched augmentation of images that live on the device."""
    fields = {name: getattr(recipe, name) for name in AUGMENTATION}
    return get_train_batch_transform(
        images.data, *normal, device=device, seed=recipe.seed, **fields
    )


def make_optimizer(
    recipe: Recipe,
    model: nn.Module,
    train: ImageDataset,
    normal: Normal,
    *,
    lr: float,
    compile_mode: str | None = None,
) -> torch.optim.Optimizer:
    """The recipe's optimizer. It prepares the network: idle biases are frozen, and muon's is given
    another start."""
    betas = (recipe.beta1, recipe.beta2)
    freeze_idle_biases(model)
    if recipe.optimizer == "adam":
        return get_optimizer(model, lr=lr, weight_decay=recipe.weight_decay, betas=betas)
    prepare_network(model, train.data, *normal)
    return get_speedrun_optimizer(model, lr=lr, betas=betas, compiled=compile_mode is not None)


def make_scheduler(
    recipe: Recipe, optimizer: torch.optim.Optimizer, loader: Any, *, lr_max: float, lr_min: float
) -> LRScheduler:
    """The recipe's cycle over all its epochs of a loader."""
    cycled = recipe.beta1_at_peak is not None
    return one_cycle(
        optimizer,
        lr_max=lr_max,
        lr_min=lr_min,
        total_steps=recipe.epochs * len(loader),
        peak_step=round(recipe.peak * len(loader)),
        momentum=(recipe.beta1, recipe.beta1_at_peak) if cycled else None,
    )
