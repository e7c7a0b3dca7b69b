"""One training, as the benchmarks make it: the parts of a ``Run``, each with its time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import now
from models import CustomResNet
from models.custom_resnet import ResidualLayer, _conv_block
from onecycle.commands.train import ONLY_BATCHED
from onecycle.data.cifar10 import load_cifar10
from onecycle.data.dataset import CIFAR10_CLASSES, ImageDataset, Images
from onecycle.data.digits import load_digits
from onecycle.errors import UsageError
from onecycle.optim.lr_rule import LRFinding
from onecycle.recipe import PRESETS, Recipe
from onecycle.records import History
from onecycle.run import Run
from onecycle.run_parts import choose_rates, one_cycle_of, range_test, set_peak
from onecycle.training.averaging import KeptWeights
from onecycle.training.compute import Compute, set_seed
from onecycle.training.inference import predict
from onecycle.training.loop import fit
from transformation import get_train_aug_transform

KINDS = ("batched", "albumentations")
"""Of the training input."""
WIDTH = 64
"""Channels of the assignment's first layer."""


@dataclasses.dataclass
class EachEpoch:
    """A callback of ``fit`` from a function of an epoch's record."""

    on_epoch: Callable[[Any], None]


class Averages:
    """Several averages of the weights beside one training, as ``fit`` takes ``kept``."""

    keep = "last"

    def __init__(self, model: nn.Module, horizons: Sequence[int]) -> None:
        self.each = {steps: KeptWeights(model, average_steps=steps) for steps in horizons}

    def note_step(self) -> None:
        for kept in self.each.values():
            kept.note_step()

    def note_epoch(self, history: History) -> None:
        pass

    def buffers(self) -> list[torch.Tensor]:
        return [buffer for kept in self.each.values() for buffer in kept.buffers()]

    def apply(self) -> None:
        pass


def network(width: int) -> Callable[[int], nn.Module]:
    """The assignment's network with ``width`` channels in the first layer, of which it has 64."""
    if width == WIDTH:
        return CustomResNet

    def make(num_classes: int) -> nn.Module:
        model = CustomResNet(num_classes)
        model.prep_layer = _conv_block(3, width)
        model.layer1 = ResidualLayer(width, 2 * width)
        model.layer2 = _conv_block(2 * width, 4 * width, pool=True)
        model.layer3 = ResidualLayer(4 * width, 8 * width)
        model.fc = nn.Linear(8 * width, num_classes)
        return model

    return make


def random_images(count: int, seed: int = 0) -> ImageDataset:
    """Noise: for speeds, which do not depend on what an image shows."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageDataset(images, np.arange(count) % 10, CIFAR10_CLASSES, "random images")


def load_images(data_dir: str | None, count: int) -> Images:
    """Training and test images; noise where no folder is given, ``count`` and 1,000 of it."""
    if data_dir is None:
        return random_images(count), random_images(1000, seed=1)
    return load_digits() if data_dir == "digits" else load_cifar10(data_dir)


def plain_recipe(batch_size: int, epochs: int) -> Recipe:
    """The assignment's recipe at a given rate: for speeds, which do not depend on it."""
    return dataclasses.replace(
        PRESETS["assignment"], batch_size=batch_size, epochs=epochs, lr_max=0.001
    )


def check_input(recipe: Recipe, images: ImageDataset, kind: str) -> None:
    """Refuse what could not be trained as the recipe says."""
    if recipe.batch_size > len(images):
        raise UsageError(
            f"batch_size is {recipe.batch_size}, more than the {len(images)} training images"
        )
    for name, allowed in ONLY_BATCHED.items() if kind != "batched" else ():
        if getattr(recipe, name) not in allowed:
            raise UsageError(f"{name} is {getattr(recipe, name)}; it needs the batched input")


def make_run(
    recipe: Recipe,
    images: Images,
    compute: Compute,
    *,
    kind: str = "batched",
    workers: int = 0,
    width: int = WIDTH,
) -> Run:
    """A run before its first step, whose parts are used here; it writes nothing."""
    augment = None
    if kind != "batched":
        normal = images[0].mean, images[0].std
        augment = get_train_aug_transform(
            *normal, flip_probability=recipe.flip_probability, padding=recipe.padding
        )
    return Run(
        "unwritten", images, network(width), recipe, augment=augment, workers=workers,
        device=compute.device.type, precision=compute.precision,
        compile=compute.compile_mode or "off",
    )  # fmt: skip


def fit_run(
    run: Run,
    found: LRFinding | None = None,
    *,
    on_epoch: Callable[[Any], None] = lambda record: None,
) -> History:
    """Train a run over its whole cycle, without evaluation and checkpoints.

    Args:
        run: before its first step.
        found: by the range test; None: the recipe has LRMAX.
        on_epoch: called after each epoch with its record.

    Raises:
        KeyboardInterrupt: out of ``on_epoch`` too, which ``fit`` would take for a wish to stop: the
            part of a training is no result.
    """
    rates, epochs = choose_rates(run.recipe, found), run.recipe.epochs
    set_peak(run.optimizer, run.recipe, rates.lr_max)
    scheduler = one_cycle_of(run.optimizer, run.recipe, rates, len(run.train_loader))
    set_seed(run.recipe.seed)
    history = fit(
        run.model, run.train_loader, None, run.optimizer, scheduler, run.criterion,
        epochs=epochs, compute=run.compute, callbacks=[EachEpoch(on_epoch)], **run.extras,
    )  # fmt: skip
    if len(history.epochs) < epochs:
        raise KeyboardInterrupt
    if run.extras["kept"]:
        run.extras["kept"].apply()
    return history


def graph_of(recipe: Recipe) -> tuple[Any, ...]:
    """What a training is compiled anew for, with the same images."""
    mixes = bool(recipe.mixup or recipe.cutmix)
    return (
        recipe.label_smoothing, recipe.class_weights, mixes, recipe.optimizer, recipe.batch_size,
        recipe.bn_groups,
    )  # fmt: skip


def warm_up(recipe: Recipe, images: Images, compute: Compute, width: int = WIDTH) -> float:
    """Compile for the two batch shapes of an epoch, on a twin; the seconds that it took.

    What follows in this process finds it done. What was compiled before is forgotten: there is a
    limit, beyond which nothing more would be compiled.
    """
    begin, size, train = now(compute.device), recipe.batch_size, images[0]
    if compute.compile_mode is not None:
        torch.compiler.reset()
    if len(train) > 2 * size:
        train = train.subset(range(size + len(train) % size))
    short = dataclasses.replace(recipe, epochs=3, peak_epoch=None, lr_max=1e-3, lr_min=None)
    fit_run(make_run(short, (train, images[1]), compute, width=width))
    return now(compute.device) - begin


def train_once(
    recipe: Recipe,
    images: Images,
    compute: Compute,
    *,
    kind: str = "batched",
    on_epoch: Callable[[Any], None] = lambda record: None,
    compiled: float = 0.0,
    width: int = WIDTH,
    averages: Sequence[int] = (),
) -> dict[str, Any]:
    """Train by a recipe and evaluate once, after the last epoch: a run of a results file.

    Args:
        recipe: of the training.
        images: to train and to evaluate on.
        compute: where and how.
        kind: of the input, one of ``KINDS``.
        on_epoch: called after each epoch with its record.
        compiled: seconds that compiling for it took.
        width: of the network, see :func:`network`.
        averages: horizons of averages of the weights, in steps, which are evaluated too.

    Raises:
        DivergedError: the loss is not finite.
        UsageError: the range test says nothing, or the recipe does not go with the images.
    """
    device = compute.device
    begin = now(device)
    run = make_run(recipe, images, compute, kind=kind, width=width)
    if averages:
        run.extras["kept"] = Averages(run.model, averages)
    found = range_test(run) if recipe.lr_max is None else None
    ready = now(device)
    history = fit_run(run, found, on_epoch=on_epoch)
    trained = now(device)
    seen = predict(run.model, run.test_loader, compute=compute, mirrored=True)
    evaluated = now(device)
    beside = {}
    for steps, kept in run.extras["kept"].each.items() if averages else ():
        with kept.averaged():
            mean = predict(run.model, run.test_loader, compute=compute)
        beside[str(steps)] = mean.accuracy
    # The rates of the test follow from the recipe; from both, what another rule would have found.
    swept = {"range_test": [round(x, 4) for x in found.losses]} if found else {}
    return {
        "seed": recipe.seed,
        "lr_max": found.lr_max if found else recipe.lr_max,
        **swept,
        **({"accuracy_averaged": beside} if beside else {}),
        "accuracy": seen.accuracy,
        "accuracy_mirrored": seen.mirrored_accuracy,
        "train_accuracy": history.epochs[-1].train_accuracy,
        "train_loss": history.epochs[-1].train_loss,
        "train_accuracy_by_epoch": [round(epoch.train_accuracy, 5) for epoch in history.epochs],
        "seconds": {
            "compiling": compiled,
            "preparation": ready - begin,
            "training": trained - ready,
            "by_epoch": [round(epoch.train_seconds, 4) for epoch in history.epochs],
            "evaluation": evaluated - trained,
        },
    }
