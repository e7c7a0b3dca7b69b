"""onecycle train: from images to a report."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onecycle.commands.common import complain, path, path_name, say
from onecycle.commands.options import (
    add_compute,
    add_data,
    add_model,
    add_recipe,
    check_data,
    check_input,
    choose_recipe,
    weights_of,
)
from onecycle.commands.seeds import check_seeds, own_seeds, runs_of, train_each
from onecycle.errors import CheckpointError, RunError, UsageError, WorkerError
from onecycle.files import quoted
from onecycle.paths import remove
from onecycle.recipe import as_data, may_be

if TYPE_CHECKING:
    from onecycle.data.dataset import Images
    from onecycle.run import Run
    from onecycle.training.group import Group
    from onecycle.training.trackers import TensorBoardTracker

ABOUT = (
    "Train the custom ResNet. A range test finds the learning rate, one cycle of it trains the "
    "network, and the folder of the run gets a report, the weights, tables and figures. "
    "Ctrl-C saves a checkpoint; the same command with the same --out resumes."
)
STATUS_FILE = "status.json"
ONLY_BATCHED = {"alternating_flip": (False,), "cutout_size_px": (None, 8)}
"""What the albumentations pipeline, which is the assignment's, does of some fields of the recipe."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_data(parser)
    add_network(parser)
    add_recipe(parser)
    add_compute(parser)
    add = parser.add_argument_group("run").add_argument
    # fmt: off
    add("--out", metavar="DIR", type=path,
        help="folder of the run (runs/ with the data set and the time)")
    add("--name", metavar="TEXT", help="of the run, in its report (the folder's name)")
    add("--author", metavar="TEXT", help="who trains it, for the same place")
    add("--seeds", metavar="LIST",
        help="train a run per seed, such as 0-4 or 0,3,7, in DIR/seed-N, and compare them")
    add("--resume", default="auto", metavar="R", type=path_name,
        help="auto resumes the stopped run in --out if there is one; never; or the file of a "
        "checkpoint (%(default)s)")
    add("--save-minutes", type=float, default=10, metavar="X",
        help="minutes between checkpoints, 0: after each step (%(default)s)")
    add("--timeout", type=float, default=60, metavar="X",
        help="minutes that one of several processes waits for the others (%(default)s)")
    add("--tensorboard", action="store_true", help="live curves: tensorboard --logdir runs")
    # fmt: on


def add_network(parser: argparse.ArgumentParser) -> None:
    """Which network, and what it starts from."""
    group = parser.add_argument_group("network")
    add_model(group, "custom_resnet")
    group.add_argument("--init", default="auto", metavar="FILE", type=path_name,
        help="weights to start from, or the folder of their run; none: random ones; auto: the "
        "published weights for your own pictures (%(default)s)")  # fmt: skip


def check(args: argparse.Namespace) -> None:
    """Refuse what can be refused without torch; ``args.recipe`` is the recipe then."""
    args.recipe = recipe = choose_recipe(args)
    check_data(args)
    if args.init not in ("auto", "none"):
        args.init = weights_of(args.init)
    if args.workers < 0:
        raise UsageError(f"--workers is {args.workers}; it must be 0 or more")
    if not 0 <= args.save_minutes < math.inf:
        raise UsageError(f"--save-minutes is {args.save_minutes}; it must be 0 or more")
    if not 0 < args.timeout < math.inf:
        raise UsageError(f"--timeout is {args.timeout}; it must be above 0")
    if args.resume not in ("auto", "never"):
        check_input(args.resume, CheckpointError, "give auto, never or a checkpoint (--resume)")
    if args.augmentation == "albumentations":
        if recipe.optimizer != "adam":
            raise UsageError("--augmentation is albumentations; muon needs batched")
        for name, allowed in ONLY_BATCHED.items():
            if getattr(recipe, name) not in allowed:
                raise UsageError(
                    f"{name} is {getattr(recipe, name)}; it must be {allowed[-1]} with "
                    "--augmentation albumentations"
                )
    if args.seeds is not None:
        check_seeds(args)
    own = re.sub(r"[^\w.-]+", "-", Path(args.data_dir).absolute().stem).strip("-.") or "pictures"
    name = "digits" if args.dataset == "digits" else own
    args.out = Path(args.out or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    args.named_out = args.out  # also where --seeds replaces it by the folder of a seed


def kept(args: argparse.Namespace) -> str:
    """What is there after an interruption."""
    saved = False
    with contextlib.suppress(OSError):
        saved = any(any(args.out.glob(kind)) for kind in ("*.ckpt", "seed-*/*.ckpt"))
    return f"checkpoint kept in {args.out}" if saved else "nothing saved yet"


def main(args: argparse.Namespace) -> int:
    """Train; the exit code."""
    from onecycle.training.compute import Compute
    from onecycle.training.joining import join_group, named_losses

    compute = Compute.choose(args.device, args.precision, args.compile)
    timeout_s = 60 * args.timeout
    joined = join_group(compute.device, timeout_s=timeout_s, say=complain)
    with joined as group, own_seeds(args, group):
        group.compare(deciding(args))
        for run in runs_of(args):
            prepare(run, group)
        with status_file(args.out, group) as status, named_losses(timeout_s):
            status["exit_code"] = code = train(args, group)
            return code


def deciding(args: argparse.Namespace) -> dict[str, object]:
    """The options that must be the same in all processes of a group, by name."""
    names = ("model", "augmentation", "workers", "precision", "compile", "dataset", "val", "val_share",
             "skip_unreadable", "limit_train", "limit_test", "seeds")  # fmt: skip
    options = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    options["--resume"] = args.resume if args.resume in ("auto", "never") else "a file"
    return as_data(args.recipe) | options


def prepare(args: argparse.Namespace, group: Group) -> None:
    """Refuse a folder that cannot take this run, before any image is loaded.

    Raises:
        StorageError: it is another run's, is in use, or cannot be written.
    """
    from onecycle.results.folder import (
        RESULTS_FILE,
        own_folder,
        prepare_folder,
    )
    from onecycle.results.reading import read_results

    is_first = group.rank == 0
    if is_first and (args.out / RESULTS_FILE).exists():
        if args.resume != "auto" or not may_be(read_results(args.out)["recipe"], args.recipe):
            prepare_folder(args.out)  # says why not
    with own_folder(args.out, is_first=is_first):
        if is_first:
            remove(args.out / STATUS_FILE)  # of an earlier start


@contextlib.contextmanager
def status_file(out: Path, group: Group) -> Iterator[dict]:
    """How the run of several processes ended, in a file: torchrun itself always ends with 1.

    Yields:
        What goes into the file; the block sets its ``exit_code``.
    """
    status = {"exit_code": 1, "message": "the process died without reporting an error"}
    if group.world_size == 1:
        yield status
        return

    def write(code: int, message: str) -> None:
        status.update(exit_code=code, message=message)
        # If the first process is gone, another one says so.
        mode = "w" if group.rank == 0 else "x"
        with contextlib.suppress(OSError):  # a full disk was reported already
            if group.rank == 0:  # a folder without a checkpoint is removed again
                out.mkdir(parents=True, exist_ok=True)
            with open(out / STATUS_FILE, mode, encoding="utf-8") as file:
                file.write(json.dumps(status) + "\n")

    if group.watch is not None and group.rank == 0:
        group.watch.last_words.append(write)
    try:
        yield status
    except RunError as error:
        if group.rank == 0 or isinstance(error, WorkerError):
            write(error.exit_code, str(error))
        raise
    except BaseException:
        if group.rank == 0:
            write(status["exit_code"], status["message"])
        raise
    if group.rank == 0:
        write(status["exit_code"], "")


def train(args: argparse.Namespace, group: Group) -> int:
    """Load the images, train and write the folder, or one per seed; the exit code."""
    from onecycle.commands.images import load_images

    data = load_images(args, group)
    if args.seeds:
        return train_each(args, group, lambda run: train_one(run, group, data))
    return train_one(args, group, data)


def train_one(args: argparse.Namespace, group: Group, data: Images) -> int:
    """Train and write the folder; the exit code."""
    from onecycle.commands.images import make_augmentation
    from onecycle.results.networks import find_model
    from onecycle.run import Run

    augment = make_augmentation(args, args.recipe, data[0])
    if args.workers and augment is None:
        say("--workers has no effect with batched augmentation")
    with contextlib.ExitStack() as stack:
        run = Run(
            args.out, data, find_model(args.model or "custom_resnet"), args.recipe,
            init=args.init, augment=augment, workers=args.workers if augment else 0,
            device=args.device, precision=args.precision, compile=args.compile, group=group,
            save_every_s=60 * args.save_minutes, resume=args.resume, name=args.name,
            author=args.author,
        )  # fmt: skip
        run.command = args.command_line
        tracker = add_tracker(run, stack) if args.tensorboard and run.is_first else None
        run.find_lr()
        if not run.is_complete:  # else it was finished before
            if run.checkpoint.source is None:
                say(f"new run in {run.folder}")
                run.log.write(run.summary())
            run.fit()
            if not run.is_complete:
                return tell_how_to_resume(run, args)
            run.save()
            if tracker is not None:
                tracker.log_figures(run.figures(), run.total_steps - 1)
    if run.is_first:
        print(f"Open {run.folder / 'report.html'}", flush=True)
    return 0


def add_tracker(run: Run, stack: contextlib.ExitStack) -> TensorBoardTracker:
    """TensorBoard's curves of the run, closed with the stack."""
    from onecycle.training.trackers import TensorBoardTracker, TrackerCallback

    usual = threading.excepthook

    def quiet(raised: threading.ExceptHookArgs) -> None:
        if not issubclass(raised.exc_type, OSError):  # which the tracker says at its next value
            usual(raised)

    stack.callback(setattr, threading, "excepthook", usual)
    threading.excepthook = quiet
    tracker = TensorBoardTracker(run.folder / "tensorboard")
    stack.enter_context(contextlib.closing(tracker))
    run.callbacks.append(TrackerCallback(tracker, len(run.train_loader)))
    return tracker


def tell_how_to_resume(run: Run, args: argparse.Namespace) -> int:
    """Say where a run was stopped and how it resumes; the exit code."""
    epochs, steps = len(run.history.epochs), len(run.history.steps)
    without = "" if args.resume == "auto" else " without --resume"
    out = str(args.named_out)
    option = quoted(f"--out={out}") if out.startswith("-") else f"--out {quoted(out)}"
    say(
        f"stopped in epoch {epochs + 1} of {run.recipe.epochs} after {steps} of {run.total_steps} "
        f"steps; resume with the same command and {option}{without}"
    )
    return 128 + (run.stopped_by or signal.SIGINT)
