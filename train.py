#!/usr/bin/env python3
"""Train the custom ResNet from the command line; see ``python train.py --help``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch

import visualize
from cifar10_files import prepare_cifar10
from data import ImageDataset, load_cifar10, load_digits
from errors import RunError, UsageError
from hardware import PRECISIONS, describe_machine, get_device, get_precision
from learning_rate import LRFinding, find_lr, one_cycle
from loaders import get_loader
from models import CustomResNet
from optimizer import get_optimizer
from recipe import PRESETS, Recipe
from run_folder import prepare_folder, write_run
from training_log import TrainingLog, progress_bar
from transformation import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    get_test_aug_transform,
    get_train_aug_transform,
)
from utils import (
    fit,
    get_stats,
    model_summary,
    predict,
    set_seed,
    to_device,
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UsageError(message)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(description="Train the custom ResNet with a one-cycle schedule.")
    add = parser.add_argument
    # fmt: off
    add("--dataset", choices=("cifar10", "digits"), default="cifar10")
    add("--data-dir", default="cifar10", metavar="DIR",
        help="official CIFAR-10 files, or pictures in train/CLASS/ and test/CLASS/ (%(default)s)")
    add("--download", action="store_true", help="get CIFAR-10 where DIR has none")
    add("--epochs", type=int, metavar="N")
    add("--peak-epoch", type=float, metavar="N", help="epochs until LRMAX (5/24 of them)")
    add("--batch-size", type=int, metavar="N")
    add("--lr-max", type=float, metavar="X", help="LRMAX (found by a range test)")
    add("--lr-min", type=float, metavar="X", help="LRMIN (follows from LRMAX)")
    add("--weight-decay", type=float, metavar="X", help="decoupled, of the weights only")
    add("--beta2", type=float, metavar="X", help="Adam's decay of the squared gradient")
    add("--label-smoothing", type=float, metavar="X")
    add("--seed", type=int, metavar="N")
    add("--device", default="auto", metavar="D", help="auto, cuda, mps or cpu")
    add("--precision", default="auto", metavar="P", help=f"auto, {', '.join(PRECISIONS)}")
    add("--workers", type=int, default=0, metavar="N", help="processes that load images")
    add("--limit-train", type=int, metavar="N", help="train on N images, the classes in proportion")
    add("--limit-test", type=int, metavar="N", help="evaluate on N images")
    add("--val", type=int, metavar="N",
        help="hold N training images out and evaluate on them instead of the test images")
    add("--out", metavar="DIR", help="folder of the run (runs/ and the time)")
    # fmt: on
    args = parser.parse_args(argv)
    args.out = args.out or f"runs/{args.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


def choose_recipe(args: argparse.Namespace) -> Recipe:
    preset = PRESETS["digits" if args.dataset == "digits" else "assignment"]
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(args, field.name, None) is not None
    }
    return dataclasses.replace(preset, **given)


def load_images(args: argparse.Namespace) -> tuple[ImageDataset, ImageDataset, str]:
    """Training images, images to evaluate on, and what the latter are."""
    if args.dataset == "digits":
        train, test = load_digits()
    else:
        with progress_bar("CIFAR-10", sys.stderr) as progress:
            folder = prepare_cifar10(args.data_dir, download=args.download, progress=progress)
            train, test = load_cifar10(folder, progress=progress)
    name = "test images"
    if args.val is not None:
        in_range("val", args.val, len(train) - 2)
        train, test = train.hold_out(args.val)
        name = "held-out training images"
    in_range("limit-train", args.limit_train, len(train))
    in_range("limit-test", args.limit_test, len(test))
    return train.sample(args.limit_train), test.sample(args.limit_test), name


def in_range(option: str, value: int | None, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise UsageError(f"--{option} is {value}; it must be from 1 to {most:,}")


def choose_rates(recipe: Recipe, finding: LRFinding | None) -> dict[str, Any]:
    """LRMAX and LRMIN with their rule, from what is given and, where there is one, the finding."""
    measured = {} if finding is None else dataclasses.asdict(finding)
    lr_max = measured.get("lr_max", recipe.lr_max)
    rules = [
        measured["rule"].split("; ")[0] if measured else "LRMAX is given",
        f"LRMIN is LRMAX / {recipe.lr_ratio:g}" if recipe.lr_min is None else "LRMIN is given",
    ]
    lr_min = lr_max / recipe.lr_ratio if recipe.lr_min is None else recipe.lr_min
    return measured | {"lr_max": lr_max, "lr_min": lr_min, "rule": "; ".join(rules)}


def run(args: argparse.Namespace) -> None:
    recipe = choose_recipe(args)
    device = get_device(args.device)
    precision = get_precision(device, args.precision)
    if args.workers < 0:
        raise UsageError(f"--workers is {args.workers}; it must be 0 or more")
    is_new = not Path(args.out).exists()
    out = prepare_folder(args.out)
    try:
        train_and_write(args, recipe, device, precision, out)
    except BaseException:
        with contextlib.suppress(OSError):
            if is_new:
                out.rmdir()  # refused where something was written
        raise


def train_and_write(
    args: argparse.Namespace, recipe: Recipe, device: torch.device, precision: str, out: Path
) -> None:
    started = time.perf_counter()
    set_seed(recipe.seed)
    train, test, test_name = load_images(args)
    is_cifar10 = train.source.startswith("CIFAR-10")
    mean, std = (CIFAR10_MEAN, CIFAR10_STD) if is_cifar10 else get_stats(train.data)
    train_set = train.with_transform(
        get_train_aug_transform(mean, std, flip_probability=recipe.flip_probability)
    )
    test_set = test.with_transform(get_test_aug_transform(mean, std))
    loading = {"seed": recipe.seed, "num_workers": args.workers, "device": device}
    train_loader = get_loader(train_set, recipe.batch_size, train=True, **loading)
    test_loader = get_loader(test_set, recipe.batch_size, train=False, **loading)

    total_steps = recipe.epochs * len(train_loader)
    if total_steps < 3:
        raise UsageError(
            f"{total_steps} steps in all; one cycle needs 3: more epochs or smaller batches"
        )

    images, labels = next(iter(train_loader))
    shown = {"source": train.source, "classes": train.classes}
    figures = {
        "class_counts": visualize.plot_class_counts(train.targets, **shown),
        "samples": visualize.plot_samples(
            images[:20].numpy(), labels[:20], mean=mean, std=std, **shown
        ),
    }
    log = TrainingLog(len(train_loader), len(test), test_name=test_name.capitalize())
    machine = describe_machine(device, precision)
    log.write(f"{train.source}: {len(train):,} training images, {len(test):,} {test_name}")
    log.write(f"{machine['device_name']}, {precision}, {machine['threads']} threads")

    model = to_device(CustomResNet(num_classes=len(train.classes)), device)
    log.write(model_summary(model))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    optimizer = get_optimizer(
        model,
        lr=recipe.finder_start_lr,
        weight_decay=recipe.weight_decay,
        betas=(recipe.beta1, recipe.beta2),
    )
    finding = None
    if recipe.lr_max is None:
        with progress_bar("range test") as on_step:
            finding = find_lr(
                model, optimizer, criterion, train_loader,
                start_lr=recipe.finder_start_lr, end_lr=recipe.finder_end_lr,
                num_steps=recipe.finder_steps, ratio=recipe.lr_ratio,
                autocast_dtype=PRECISIONS[precision], on_step=on_step,
            )  # fmt: skip
    rates = choose_rates(recipe, finding)
    lr_max, lr_min = rates["lr_max"], rates["lr_min"]
    if finding is not None:
        figures["lr_finder"] = visualize.plot_lr_finder(**rates, source=train.source)
    log.write(f"LRMAX = {lr_max:.6g}, LRMIN = {lr_min:.6g}: {rates['rule']}")
    log.write()
    scheduler = one_cycle(
        optimizer,
        lr_max=lr_max,
        lr_min=lr_min,
        total_steps=total_steps,
        peak_step=round(recipe.peak * len(train_loader)),
    )
    with contextlib.closing(log):
        history = fit(
            model, train_loader, test_loader, optimizer, scheduler, criterion,
            epochs=recipe.epochs, precision=precision, on_step=log.on_step, on_epoch=log.on_epoch,
        )  # fmt: skip

    predictions = predict(model, test_loader, precision=precision)
    predicted = predictions.predicted
    log.write(
        f"Accuracy {100 * predictions.accuracy:.2f} % on {len(test):,} {test_name} "
        f"({train.source}), {time.perf_counter() - started:.0f} s"
    )
    figures |= {
        "history": visualize.plot_history(history.epochs, source=train.source),
        "lr_history": visualize.plot_lr_history(history.steps, source=train.source),
        "misclassified": visualize.plot_misclassified(
            test.data, test.targets, predictions.probabilities, **shown
        ),
        "confusion_matrix": visualize.plot_confusion_matrix(test.targets, predicted, **shown),
    }
    write_run(
        out,
        model=model,
        recipe=dataclasses.asdict(recipe) | {"peak_epoch": recipe.peak},
        data={
            "source": train.source,
            "classes": train.classes,
            "mean": mean,
            "std": std,
            "num_train": len(train),
            "num_test": len(test),
            "evaluated_on": test_name,
        },
        learning_rate=rates,
        machine=machine,
        epochs=history.epochs,
        steps=history.steps,
        labels=predictions.labels,
        predicted=predicted,
        log=log.lines,
        figures=figures,
    )
    log.write(f"The run is in {out}, its figures in {out / 'figures'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        run(parse(argv))
    except RunError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted; the run is not kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
