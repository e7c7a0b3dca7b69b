"""What a run from the command line does, from the images to the report."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import torch

from models import CustomResNet
from onecycle.commands.common import say
from onecycle.data.loaders import ResidentLoader
from onecycle.errors import CheckpointError, DivergedError, UsageError
from onecycle.modules import model_summary
from onecycle.optim.lr_finder import LRFinding, find_lr
from onecycle.recipe import Recipe
from onecycle.results.folder import prepare_folder
from onecycle.training.checkpoint import Checkpoint
from onecycle.training.compute import (
    PRECISIONS,
    describe_machine,
    set_seed,
    to_device,
    tune_process,
)
from onecycle.training.group import Group
from onecycle.training.loop import fit
from onecycle.training.progress import TrainingLog, progress_bar
from onecycle.training.signals import catch_signals
from onecycle.training.trackers import TensorBoardTracker, call_all, track
from onecycle.training_input import load_images, make_loaders
from onecycle.training_parts import make_optimizer, make_scheduler, mean_and_std
from onecycle.training_results import draw, explain, measure, write_results


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
    """Train by the recipe, from the beginning or on; the exit code."""
    started = time.perf_counter()
    args, recipe, group, out = setup.args, setup.recipe, setup.group, setup.out
    set_seed(recipe.seed)
    tune_process()
    with group.one_by_machine_first():
        train, test, test_name = load_images(args)
    normal = mean, std = mean_and_std(train)
    train_loader, finder_loader, test_loader = make_loaders(
        args, recipe, group, train, test, normal
    )
    steps_per_epoch = len(train_loader)
    total_steps = recipe.epochs * steps_per_epoch
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
    log = TrainingLog(steps_per_epoch, len(test), test_name=test_name.capitalize(), stream=stream)
    log.write(f"{train.source}: {len(train):,} training images, {len(test):,} {test_name}")
    log.write(f"{machine['device_name']}, {setup.precision}, {machine['threads']} threads")
    identity = {
        "recipe": as_data(recipe),
        "data": data | {"sha256": [train.digest(), test.digest()]},
        "workers": None if batched else args.workers,
        "steps_per_epoch": steps_per_epoch,  # a large group leaves a small last batch out
    }
    checkpoint, resumed = open_checkpoint(setup, identity, machine, log)

    samples = tuple(part[:20].cpu().numpy() for part in next(iter(finder_loader)))
    model = to_device(CustomResNet(num_classes=len(train.classes)), group.device)
    log.write(model_summary(model))
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    optimizer = make_optimizer(
        recipe, model, train, normal,
        lr=recipe.finder_start_lr, compile_mode=setup.compile_mode,
    )  # fmt: skip
    if not resumed:
        found = find_rates(setup, model, optimizer, criterion, finder_loader)
        checkpoint.notes["rates"] = found
    rates = checkpoint.notes["rates"]
    log.write(f"LRMAX = {rates['lr_max']:.6g}, LRMIN = {rates['lr_min']:.6g}: {rates['rule']}")
    log.write()
    scheduler = make_scheduler(
        recipe, optimizer, train_loader, lr_max=rates["lr_max"], lr_min=rates["lr_min"]
    )
    with contextlib.ExitStack() as stack:
        on_step, on_epoch, tracker = log.on_step, log.on_epoch, None
        if args.tensorboard and setup.is_first:
            tracker = TensorBoardTracker(out / "tensorboard")
            stack.enter_context(contextlib.closing(tracker))
            track_step, track_epoch = track(tracker, steps_per_epoch)
            on_step, on_epoch = call_all(on_step, track_step), call_all(on_epoch, track_epoch)
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
                f"the same command with --out {shlex.quote(str(out))} "
                f"{'' if args.resume == 'auto' else 'and without --resume '}goes on"
            )
            return 143 if signals.received == signal.SIGTERM else 130

        evaluation = measure(
            model, test_loader, test, precision=setup.precision, group=group,
            mirrored=recipe.flip_probability > 0,
        )  # fmt: skip
        if not setup.is_first:
            return 0
        log.write(
            f"Accuracy {100 * evaluation.accuracy:.2f} % on {len(test):,} {test_name} "
            f"({train.source}), {time.perf_counter() - started:.0f} s"
        )
        explained = explain(model, test, evaluation, normal)
        figures = draw(
            train, test, history, rates, samples, evaluation, explained, mean, std,
            steps_per_epoch=steps_per_epoch,
        )  # fmt: skip
        if tracker is not None:
            tracker.log_figures(figures, total_steps - 1)
    write_results(
        out, model, test, history, evaluation,
        about={
            "recipe": as_data(recipe), "data": data, "learning_rate": rates, "machine": machine,
        },
        samples=samples, explained=explained, figures=figures,
        log=log.lines, command=setup.command,
    )  # fmt: skip
    checkpoint.discard()
    log.write(f"The run is in {out}: report.html shows it, figures/ has its pictures")
    return 0


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


def open_checkpoint(
    setup: Setup, identity: dict[str, Any], machine: dict[str, Any], log: TrainingLog
) -> tuple[Checkpoint, bool]:
    """The state of the run in its folder, and whether there was one to go on from.

    Raises:
        CheckpointError: it is another run's, or not all processes see it.
    """
    checkpoint = Checkpoint(
        setup.out,
        identity=identity,
        environment=machine,
        extra={"log": log},
        every_s=60 * setup.args.save_minutes,
        write=setup.is_first,
    )
    resumed = checkpoint.load(setup.args.resume)
    if not setup.group.agrees(resumed):
        raise CheckpointError(
            f"not all processes see the checkpoint in {setup.out}: "
            "name a folder that all machines share"
        )
    for warning in checkpoint.warnings:
        say(warning)
    say(f"going on from {checkpoint.source}" if resumed else f"a new run in {setup.out}")
    return checkpoint, resumed


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


def as_data(recipe: Recipe) -> dict[str, Any]:
    return dataclasses.asdict(recipe) | {"peak_epoch": recipe.peak}


def stored_results(out: Path) -> dict[str, Any]:
    """What a finished run left in the folder, or nothing."""
    try:
        return dict(json.loads((out / "results.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
