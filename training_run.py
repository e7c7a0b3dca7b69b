"""What a run from the command line does, from the images to the report."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import error_figures
import visualize
from checkpoint import Checkpoint
from cifar10_files import prepare_cifar10
from command_line import complain
from data import ImageDataset, load_cifar10, load_digits
from distributed import Group
from errors import CheckpointError, DivergedError, UsageError
from evaluation import Evaluation, evaluate_predictions
from grad_cam import explain_errors
from hardware import PRECISIONS, describe_machine, tune_process
from interrupts import catch_signals
from learning_rate import LRFinding, find_lr
from loaders import ResidentLoader, fits_device, get_loader
from models import CustomResNet, save_weights
from pictures import load_image_folder
from recipe import Recipe
from report import build_report
from run_folder import prepare_folder, write_run
from trackers import TensorBoardTracker, call_all, track
from training_log import TrainingLog, progress_bar
from training_parts import (
    Normal,
    make_augmentation,
    make_optimizer,
    make_scheduler,
    mean_and_std,
)
from transformation import get_test_aug_transform, get_test_batch_transform, get_train_aug_transform
from utils import fit, model_summary, predict, set_seed, to_device


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """What is settled before any image is loaded."""

    args: argparse.Namespace
    recipe: Recipe
    precision: str
    compile_mode: str | None
    group: Group
    out: Path
    command: str

    @property
    def is_first(self) -> bool:
        """This process writes and speaks."""
        return self.group.rank == 0


def train_and_write(setup: Setup) -> int:
    started = time.perf_counter()
    args, recipe, group, out = setup.args, setup.recipe, setup.group, setup.out
    set_seed(recipe.seed)
    tune_process()
    with group.one_by_machine_first():
        train, test, test_name = load_images(args)
    normal = mean, std = mean_and_std(train)
    train_loader, finder_loader, test_loader = make_loaders(setup, train, test, normal)
    total_steps = recipe.epochs * len(train_loader)
    if total_steps < 3:
        raise UsageError(
            f"{total_steps} steps in all; one cycle needs 3: more epochs or smaller batches"
        )
    batched = isinstance(train_loader, ResidentLoader)
    data = {
        "source": train.source,
        "classes": train.classes,
        "mean": mean,
        "std": std,
        "num_train": len(train),
        "num_test": len(test),
        "evaluated_on": test_name,
        "augmentation": "batched" if batched else "albumentations",
    }
    if group.same(setup.is_first and is_complete(setup, data)):
        return 0
    machine = describe_machine(
        group.device, setup.precision,
        compile_mode=setup.compile_mode, num_processes=group.world_size,
    )  # fmt: skip
    stream = None if setup.is_first else open(os.devnull, "w", encoding="utf-8")
    log = TrainingLog(len(train_loader), len(test), test_name=test_name.capitalize(), stream=stream)
    log.write(f"{train.source}: {len(train):,} training images, {len(test):,} {test_name}")
    log.write(f"{machine['device_name']}, {setup.precision}, {machine['threads']} threads")
    checkpoint = Checkpoint(
        out,
        identity={
            "recipe": as_data(recipe),
            "data": data | {"sha256": [train.digest(), test.digest()]},
            "workers": None if batched else args.workers,
        },
        environment=machine,
        extra={"log": log},
        every_s=60 * args.save_minutes,
        write=setup.is_first,
    )
    resumed = checkpoint.load(args.resume)
    if not group.agrees(resumed):
        raise CheckpointError(
            f"not all processes see the checkpoint in {out}: name a folder that all machines share"
        )
    for warning in checkpoint.warnings:
        say(warning)
    say(f"going on from {checkpoint.source}" if resumed else f"a new run in {out}")

    samples = tuple(part[:20].cpu().numpy() for part in next(iter(finder_loader)))
    model = to_device(CustomResNet(num_classes=len(train.classes)), group.device)
    log.write(model_summary(model))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    optimizer = make_optimizer(recipe, model, train, normal, lr=recipe.finder_start_lr)
    if not resumed:
        found = find_rates(setup, model, optimizer, criterion, finder_loader)
        checkpoint.notes["rates"] = found
    rates = checkpoint.notes["rates"]
    log.write(f"LRMAX = {rates['lr_max']:.6g}, LRMIN = {rates['lr_min']:.6g}: {rates['rule']}")
    log.write()
    scheduler = make_scheduler(
        recipe, optimizer, train_loader, lr_max=rates["lr_max"], lr_min=rates["lr_min"]
    )
    on_step, on_epoch, tracker = log.on_step, log.on_epoch, None
    if args.tensorboard and setup.is_first:
        tracker = TensorBoardTracker(out / "tensorboard")
        track_step, track_epoch = track(tracker, len(train_loader))
        on_step, on_epoch = call_all(on_step, track_step), call_all(on_epoch, track_epoch)
    with contextlib.ExitStack() as stack:
        if tracker is not None:
            stack.enter_context(contextlib.closing(tracker))
        try:
            with contextlib.closing(log), catch_signals() as signals:
                history = fit(
                    model, train_loader, test_loader, optimizer, scheduler, criterion,
                    epochs=recipe.epochs, precision=setup.precision,
                    compile_mode=setup.compile_mode, group=group, checkpoint=checkpoint,
                    stop=signals.stop, on_step=on_step, on_epoch=on_epoch,
                )  # fmt: skip
        except DivergedError as error:
            kept = f"the last good state is {checkpoint.last}" if checkpoint.last else ""
            raise DivergedError(f"{error}; {kept or 'nothing was saved before'}") from error
        if len(history.epochs) < recipe.epochs:
            say(
                f"stopped in epoch {len(history.epochs) + 1} of {recipe.epochs} after "
                f"{len(history.steps)} of {total_steps} steps; "
                f"the same command with --out {shlex.quote(str(out))} goes on"
            )
            return 143 if signals.received == signal.SIGTERM else 130
        evaluation = measure(setup, model, test_loader, test)
        if not setup.is_first:
            return 0
        log.write(
            f"Accuracy {100 * evaluation.accuracy:.2f} % on {len(test):,} {test_name} "
            f"({train.source}), {time.perf_counter() - started:.0f} s"
        )

        def normalise(indices: torch.Tensor, epoch: int) -> torch.Tensor:
            few = test.data[indices.cpu().numpy()]  # all of them may not fit the device
            transform = get_test_batch_transform(few, *normal, device=group.device)
            return transform(torch.arange(len(few), device=group.device), epoch)

        explained = explain_errors(model, normalise, evaluation)
        figures = draw(
            train, test, history, rates, samples, evaluation, explained, mean, std,
            steps_per_epoch=len(train_loader),
        )  # fmt: skip
        if tracker is not None:
            tracker.log_figures(figures, total_steps - 1)
    about = {
        "recipe": as_data(recipe), "data": data, "learning_rate": rates, "machine": machine,
    }  # fmt: skip
    history_data = [dataclasses.asdict(record) for record in history.epochs]
    try:
        save_weights(
            out / "model.safetensors", model.state_dict(), data=data, recipe=about["recipe"],
            dtype=torch.float32,
        )  # fmt: skip
    except UsageError as error:
        say(f"without model.safetensors for predict.py and evaluate.py: {error}")
    write_run(
        out,
        **about,
        model=model,
        epochs=history.epochs,
        steps=history.steps,
        labels=evaluation.labels,
        predicted=evaluation.predicted,
        log=log.lines,
        figures=figures,
        evaluation=evaluation.summary(),
        tables={"errors": evaluation.error_rows(), "classes": evaluation.class_rows()},
        report=build_report(
            about | {"history": history_data},
            evaluation,
            test.data,
            title=f"Custom ResNet on {train.source}",
            steps=history.steps,
            samples=samples,
            grad_cam=explained,
            command=setup.command,
        ),
    )
    checkpoint.discard()
    log.write(f"The run is in {out}: report.html shows it, figures/ has its pictures")
    return 0


def load_images(args: argparse.Namespace) -> tuple[ImageDataset, ImageDataset, str]:
    """Training images, images to evaluate on, and what the latter are."""
    if args.dataset == "digits":
        train, test = load_digits()
    else:
        with progress_bar("CIFAR-10", sys.stderr) as progress:
            folder = prepare_cifar10(args.data_dir, download=args.download, progress=progress)
            train, test = load_cifar10(folder, load_folder=load_image_folder, progress=progress)
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
    setup: Setup, train: ImageDataset, test: ImageDataset, normal: Normal
) -> tuple[Any, Any, Any]:
    """Training batches, training batches for the range test, and batches to evaluate on."""
    args, recipe, group = setup.args, setup.recipe, setup.group
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


def is_complete(setup: Setup, data: dict[str, Any]) -> bool:
    """Whether the folder holds this very run, finished.

    Raises:
        StorageError: it holds a finished run of the same recipe on other images.
    """
    results = stored_results(setup.out)
    if not results:
        return False
    if "history" not in results or results["data"] != json.loads(json.dumps(data)):
        prepare_folder(setup.out)  # says why not
    done = len(results["history"])
    print(f"already complete ({done} of {setup.recipe.epochs} epochs): {setup.out}")
    return True


def find_rates(setup: Setup, model, optimizer, criterion, loader) -> dict[str, Any]:
    """The same rates for all processes: given ones, or what the first one's range test finds."""
    recipe, rates = setup.recipe, None
    if setup.is_first:
        finding = None
        if recipe.lr_max is None:
            with progress_bar("range test") as on_step:
                finding = find_lr(
                    model, optimizer, criterion, loader,
                    start_lr=recipe.finder_start_lr, end_lr=recipe.finder_end_lr,
                    num_steps=recipe.finder_steps, ratio=recipe.lr_ratio,
                    autocast_dtype=PRECISIONS[setup.precision], on_step=on_step,
                )  # fmt: skip
        rates = choose_rates(recipe, finding)
    return setup.group.same(rates)


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


def measure(setup: Setup, model, loader, test: ImageDataset) -> Evaluation:
    """Of the images, and of their mirror images where these mean the same."""
    found = predict(
        model, loader, precision=setup.precision, group=setup.group,
        mirrored=setup.recipe.flip_probability > 0,
    )  # fmt: skip
    return evaluate_predictions(
        found.probabilities, found.labels, test.classes, mirrored=found.mirrored
    )


def draw(
    train, test, history, rates, samples, evaluation, explained, mean, std, *, steps_per_epoch: int
) -> dict[str, Figure]:
    """The figures of a run, by file name."""
    wrong = explained["indices"]
    shown = {"source": train.source, "classes": train.classes}
    figures = {
        "class_counts": visualize.plot_class_counts(train.targets, **shown),
        "samples": visualize.plot_samples(*samples, mean=mean, std=std, **shown),
    }
    if "losses" in rates:
        figures["lr_finder"] = visualize.plot_lr_finder(**rates, source=train.source)
    return figures | {
        "history": visualize.plot_history(history.epochs, source=train.source),
        "lr_history": visualize.plot_lr_history(
            history.steps, source=train.source, steps_per_epoch=steps_per_epoch
        ),
        "misclassified": visualize.plot_misclassified(
            test.data, evaluation.labels, evaluation.probabilities, **shown
        ),
        "confusion_matrix": visualize.plot_confusion_matrix(
            evaluation.labels, evaluation.predicted, **shown
        ),
        "confused_pairs": error_figures.plot_confused_pairs(evaluation.confused_pairs, **shown),
        "reliability": error_figures.plot_reliability(
            evaluation.bins, calibration_error=evaluation.calibration_error, source=train.source
        ),
        "grad_cam": error_figures.plot_grad_cam(
            test.data[wrong], evaluation.labels[wrong], evaluation.predicted[wrong],
            explained["predicted"], explained["true"], layer=explained["layer"], **shown,
        ),
    }  # fmt: skip


def as_data(recipe: Recipe) -> dict[str, Any]:
    return dataclasses.asdict(recipe) | {"peak_epoch": recipe.peak}


def stored_results(out: Path) -> dict[str, Any]:
    """What a finished run left in the folder, or nothing."""
    try:
        return dict(json.loads((out / "results.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def say(line: str) -> None:
    """A line for the person at the terminal that is no part of the run's log."""
    if int(os.environ.get("RANK", "0")) == 0:
        complain(line)
