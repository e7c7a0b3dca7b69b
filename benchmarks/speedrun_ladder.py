#!/usr/bin/env python3
"""What each technique of the speedrun gives, one left out or exchanged at a time: a short proxy.

A few thousand training images, a few epochs, evaluated on other training images: it says which
techniques learn fastest at the beginning, and only hints at a training of all images.

    python benchmarks/speedrun_ladder.py --data-dir DIR [VARIANT ...]

Each run is in the results file as soon as it is done; a variant that is there is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.common import write_json
from benchmarks.training import Parts, fit_parts, test_loader, train_loader
from models import CustomResNet
from onecycle.data.augmentation import CIFAR10_MEAN, CIFAR10_STD
from onecycle.data.cifar10 import load_cifar10
from onecycle.data.folder import load_image_folder
from onecycle.optim import muon as speedrun
from onecycle.optim.adam import get_optimizer
from onecycle.optim.muon import get_speedrun_optimizer, prepare_network
from onecycle.recipe import PRESETS, Recipe
from onecycle.training.compute import (
    describe_machine,
    get_device,
    get_precision,
    set_seed,
    to_device,
)
from onecycle.training.loop import evaluate

RESULTS = Path(__file__).resolve().parent / "results" / "speedrun_proxy.json"
SPEEDRUN, ASSIGNMENT = PRESETS["speedrun"], replace(PRESETS["assignment"], lr_max=0.0067)
# name: (recipe, changed arguments of prepare_network or functions that it leaves out; None: no
# preparation)
VARIANTS = {
    "assignment": (ASSIGNMENT, None),
    "speedrun": (SPEEDRUN, {}),
    "without whitening": (SPEEDRUN, {"without": "whiten_"}),
    "without identities": (SPEEDRUN, {"without": "dirac_"}),
    "without the small head": (SPEEDRUN, {"output_scale": 1.0}),
    "without preparation": (SPEEDRUN, None),
    "Adam, prepared": (replace(SPEEDRUN, **{
        name: getattr(ASSIGNMENT, name)
        for name in ("optimizer", "lr_max", "lr_ratio", "weight_decay", "beta1")
    }), {}),
    "rate halved": (replace(SPEEDRUN, lr_max=SPEEDRUN.lr_max / 2), {}),
    "rate doubled": (replace(SPEEDRUN, lr_max=SPEEDRUN.lr_max * 2), {}),
    "label smoothing 0.1": (replace(SPEEDRUN, label_smoothing=0.1), {}),
    "the assignment's augmentation": (
        replace(SPEEDRUN, alternating_flip=False, cutout_size_px=8, padding="constant"), {},
    ),
}  # fmt: skip


def train(recipe: Recipe, changes: dict | None, images, held_out, precision: str) -> dict:
    """One training of a variant, evaluated at its end."""
    device = torch.device("cpu")
    set_seed(recipe.seed)
    model = to_device(CustomResNet(), device)
    if changes is not None:
        changes = dict(changes)
        skipped = changes.pop("without", None)
        with mock.patch.object(speedrun, skipped) if skipped else contextlib.nullcontext():
            prepare_network(model, images.data, CIFAR10_MEAN, CIFAR10_STD, **changes)
    rates = {"lr": recipe.lr_max, "betas": (recipe.beta1, recipe.beta2)}
    if recipe.optimizer == "muon":
        optimizer = get_speedrun_optimizer(model, **rates)
    else:
        optimizer = get_optimizer(model, weight_decay=recipe.weight_decay, **rates)
    # What a running average of weights and BN statistics would have given instead.
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    history = fit_parts(
        Parts(model, criterion, optimizer), train_loader(images, recipe, device), recipe,
        lr_max=recipe.lr_max, precision=precision,
    )  # fmt: skip
    batches = test_loader(held_out, images, device)
    loss, accuracy = evaluate(model, batches, precision=precision)
    _, averaged = evaluate(average.module, batches, precision=precision)
    return {
        "accuracy": round(accuracy, 4),
        "accuracy_averaged": round(averaged, 4),
        "loss": round(loss, 4),
        "train_accuracy": round(history.epochs[-1].train_accuracy, 4),
        "images_per_second": round(
            len(images) * recipe.epochs / sum(r.train_seconds for r in history.epochs), 1
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("variants", nargs="*", default=list(VARIANTS), metavar="VARIANT", help=", ".join(VARIANTS))
    add("--data-dir", default="cifar10", metavar="DIR")
    add("--epochs", type=int, default=2)
    add("--batch-size", type=int, default=128)
    add("--num-train", type=int, default=2048)
    add("--num-held-out", type=int, default=1000)
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    images, held_out = load_cifar10(args.data_dir, load_folder=load_image_folder)[0].hold_out(5000)
    images, held_out = images.sample(args.num_train), held_out.sample(args.num_held_out)
    device = get_device("cpu")
    precision = get_precision(device, "auto")
    settings = {
        "images": images.source, "num_train": len(images), "num_held_out": len(held_out),
        "epochs": args.epochs, "batch_size": args.batch_size,
        "evaluated_on": "held-out training images",
    }  # fmt: skip
    result = {"settings": settings, "machine": describe_machine(device, precision), "runs": []}
    if args.out.exists():
        result = json.loads(args.out.read_text("utf-8"))
        if result["settings"] != settings:
            parser.error(f"{args.out} has runs with other settings; give another --out")
    for name in args.variants:
        if any((run["variant"], run["seed"]) == (name, args.seed) for run in result["runs"]):
            continue
        recipe, changes = VARIANTS[name]
        if any(
            run["variant"] == name and run.get("recipe") != asdict(recipe) for run in result["runs"]
        ):
            parser.error(f"{args.out} has {name} with another recipe; give another --out")
        sizes = {"epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed}
        start = time.perf_counter()
        run = train(replace(recipe, **sizes), changes, images, held_out, precision)
        run = {"variant": name, "seed": args.seed, "recipe": asdict(recipe)} | run
        result["runs"].append(run)
        write_json(args.out, result)
        print(f"{name}: {run['accuracy']:.2%}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
