#!/usr/bin/env python3
"""Train the custom ResNet from the command line; see ``python train.py --help``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from onecycle.commands.common import Parser, command_of, complain, run_command
from onecycle.errors import CheckpointError, RunError, UsageError, WorkerError
from onecycle.files import lock_folder
from onecycle.recipe import PRESETS, Recipe, with_later_fields
from onecycle.results.folder import prepare_folder
from onecycle.training.compute import PRECISIONS, get_compile_mode, get_device, get_precision
from onecycle.training.group import join_group
from onecycle.training_input import in_range
from onecycle.training_run import Setup, as_data, stored_results, train_and_write

STATUS_FILE = "status.json"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description="Train the custom ResNet with a one-cycle schedule.")
    add = parser.add_argument
    # fmt: off
    add("--dataset", choices=("cifar10", "digits"), default="cifar10",
        help="digits: small, and needs no download (%(default)s)")
    add("--data-dir", default="cifar10", metavar="DIR",
        help="official CIFAR-10 files, or pictures in train/CLASS/ and test/CLASS/ (%(default)s)")
    add("--download", action="store_true", help="get CIFAR-10 where DIR has none")
    add("--preset", choices=sorted(PRESETS),
        help="recipe: assignment (for CIFAR-10, with the values below), digits or speedrun")
    add("--epochs", type=int, metavar="N", help="passes over the training images (24; digits 8)")
    add("--peak-epoch", type=float, metavar="N", help="epochs until LRMAX (5/24 of them)")
    add("--batch-size", type=int, metavar="N", help="images a step (512; digits 64)")
    add("--lr-max", type=float, metavar="X", help="LRMAX (found by a range test)")
    add("--lr-min", type=float, metavar="X", help="LRMIN (LRMAX / 200)")
    add("--weight-decay", type=float, metavar="X", help="decoupled, of the weights only (0.4)")
    add("--beta2", type=float, metavar="X", help="Adam's decay of the squared gradient (0.99)")
    add("--label-smoothing", type=float, metavar="X",
        help="share of the target spread over all classes (0.1)")
    add("--seed", type=int, metavar="N", help="of weights, order and augmentation (0)")
    add("--device", default="auto", metavar="D", help="auto, cuda, mps or cpu")
    add("--precision", default="auto", metavar="P", help=f"auto, {', '.join(PRECISIONS)}")
    add("--compile", default="off", metavar="M",
        help="off, default or reduce-overhead: on a GPU, faster steps after a slow start")
    add("--augmentation", choices=("batched", "albumentations"), default="batched",
        help="of whole batches on the device, or image by image in a loader (%(default)s)")
    add("--workers", type=int, default=0, metavar="N",
        help="processes that load images for albumentations")
    add("--limit-train", type=int, metavar="N", help="train on N images, the classes in proportion")
    add("--limit-test", type=int, metavar="N", help="evaluate on N images")
    add("--val", type=int, metavar="N",
        help="hold N training images out and evaluate on them instead of the test images")
    add("--out", metavar="DIR", help="folder of the run (runs/ and the time)")
    add("--resume", default="auto", metavar="R",
        help="auto: go on where a run in --out was stopped; never; or a checkpoint (%(default)s)")
    add("--tensorboard", action="store_true", help="live curves: tensorboard --logdir runs")
    add("--save-minutes", type=float, default=10, metavar="X",
        help="minutes between checkpoints within an epoch (%(default)s)")
    # fmt: on
    args = parser.parse_args(argv)
    args.out = args.out or f"runs/{args.dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


def choose_recipe(args: argparse.Namespace) -> Recipe:
    preset = PRESETS[args.preset or ("digits" if args.dataset == "digits" else "assignment")]
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(args, field.name, None) is not None
    }
    if args.dataset == "digits":  # mirroring changes what a digit is
        given |= {"flip_probability": 0.0, "alternating_flip": False}
    return dataclasses.replace(preset, **given)


@contextlib.contextmanager
def own_folder(args: argparse.Namespace, recipe: Recipe, is_first: bool) -> Iterator[Path]:
    """The folder of the run, for this process alone; gone again where nothing was written."""
    out = Path(args.out)
    if not is_first:
        yield out
        return
    is_new = not out.exists()
    finished = stored_results(out).get("recipe")
    same = finished is not None and with_later_fields(finished) == as_data(recipe)
    if args.resume != "auto" or not same:
        prepare_folder(out)
    try:
        with lock_folder(out) as warning:
            if warning:
                complain(warning)
            (out / STATUS_FILE).unlink(missing_ok=True)  # of an earlier start
            yield out
    except BaseException:
        with contextlib.suppress(OSError):
            if is_new:
                out.rmdir()  # refused where something was written
        raise


def run(args: argparse.Namespace, command: str) -> int:
    """Everything between the command line and the exit code."""
    recipe = choose_recipe(args)
    device = get_device(args.device)
    precision = get_precision(device, args.precision)
    compile_mode = get_compile_mode(device, args.compile)
    if recipe.optimizer != "adam" and args.augmentation != "batched":
        raise UsageError(
            f"--augmentation is {args.augmentation}; the speedrun has its own, batched"
        )
    if args.workers < 0:
        raise UsageError(f"--workers is {args.workers}; it must be 0 or more")
    if not 0 <= args.save_minutes < float("inf"):
        raise UsageError(f"--save-minutes is {args.save_minutes}; it must be 0 or more")
    if args.resume not in ("auto", "never") and not Path(args.resume).is_file():
        raise CheckpointError(
            f"--resume is {args.resume}, which is no file; give auto, never or a checkpoint"
        )
    for option in ("val", "limit-train", "limit-test"):
        in_range(option, getattr(args, option.replace("-", "_")), None)
    with join_group(device) as group, own_folder(args, recipe, group.rank == 0) as out:
        setup = Setup(args, recipe, precision, compile_mode, group, out, command)
        if group.world_size == 1:
            return train_and_write(setup)
        # torchrun ends with 1 whatever the reason was.
        status = {"exit_code": 1, "message": "it was killed, or there is a bug"}
        try:
            code = train_and_write(setup)
            status = {"exit_code": code, "message": ""}
            return code
        except RunError as error:
            status = {"exit_code": error.exit_code, "message": str(error)}
            raise
        except RuntimeError as error:
            if "gloo" not in str(error).lower() and "nccl" not in str(error).lower():
                raise
            lost = WorkerError(
                f"another process of the group is gone ({str(error).splitlines()[0]})"
            )
            status = {"exit_code": lost.exit_code, "message": str(lost)}
            raise lost from error
        finally:
            if group.rank == 0:
                with contextlib.suppress(OSError):  # a full disk has been said already
                    (out / STATUS_FILE).write_text(json.dumps(status) + "\n", "utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    command = command_of("train.py", argv)
    return run_command(lambda: run(parse(argv), command), kept="what was saved stays")


if __name__ == "__main__":
    sys.exit(main())
