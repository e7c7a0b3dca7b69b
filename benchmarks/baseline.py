#!/usr/bin/env python3
"""The whole loop beside those of other libraries with the same recipe, an epoch each in turns.

A plain loop, as public solutions of the assignment have it, Lightning and fastai, each as its
documentation writes it (`elsewhere/speed_*.py`): float32, and bfloat16 where it takes a word. Same network,
same images, same batch size. The first epoch of each is the warm-up. Each has a process of its own,
which ``tune_process`` has not touched. What is not installed is left out, and said so.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    has_amx,
    new_result,
    now,
    parser,
    run_benchmark,
    set_sizes,
    settle,
    spread,
    write_json,
)
from benchmarks.elsewhere.speed import Task, run
from benchmarks.tables import show
from benchmarks.training import fit_run, load_images, make_run, plain_recipe
from models import CustomResNet
from onecycle.errors import UsageError

GOAL = 3.0
"""The ratio to reach on a CPU with AMX."""
OURS, PLAIN = "this loop", "plain loop, float32"


@dataclass(frozen=True)
class Loop:
    """Another loop: its module in ``elsewhere``, what it needs, and its number format."""

    module: str
    needs: tuple[str, ...]
    autocast: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")


LOOPS = {
    PLAIN: Loop("speed_plain", ("albumentations",)),
    "plain loop, bfloat16 autocast": Loop("speed_plain", ("albumentations",), autocast=True),
    "Lightning, float32": Loop("speed_lightning", ("lightning", "albumentations")),
    "Lightning, bf16-mixed": Loop("speed_lightning", ("lightning", "albumentations"), True),
    "fastai, float32": Loop("speed_fastai", ("fastai",)),
    "fastai, to_fp16": Loop("speed_fastai", ("fastai",), True, ("cuda",)),
}


def parse(argv):
    made = parser(__doc__, "baseline")
    add = made.add_argument
    # fmt: off
    add("--images", type=int, metavar="N", help="an epoch (512; 50,000 on a GPU)")
    add("--batch-size", type=int, metavar="N", help="(256; 512 on a GPU)")
    add("--rounds", type=int, default=5, metavar="N", help="(%(default)s)")
    add("--workers", type=int, metavar="N", help="of the others' loaders (0; 2 on a GPU)")
    # fmt: on
    args = made.parse_args(argv)
    compute = settle(args)
    if args.rounds < 1:
        raise UsageError(f"--rounds is {args.rounds}; it must be 1 or more")
    set_sizes(args, compute.device, images=(512, 50_000), batch_size=(256, 512), workers=(0, 2))
    return args, compute


Process: Any = multiprocessing.get_context("spawn").Process


@contextlib.contextmanager
def others(result: dict[str, Any], **options: Any) -> Iterator[dict[str, Connection]]:
    """The other loops by name, each waiting for its turns; why one is left out is in ``failed``."""
    pipes, processes = {}, []
    result["failed"] = {}
    for name, loop in LOOPS.items():
        missing = [package for package in loop.needs if importlib.util.find_spec(package) is None]
        if missing:
            result["failed"][name] = f"{', '.join(missing)} is not installed"
        elif options["device"] in loop.devices:
            pipes[name], theirs = multiprocessing.Pipe()
            task = Task(autocast=loop.autocast, **options)
            processes.append(Process(target=run, args=(loop.module, task, theirs), daemon=True))
            processes[-1].start()
    try:
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()  # each ends when it asks for its next turn
        for process in processes:
            process.join(timeout=10)


def turn_of(pipe: Connection) -> float | str:
    """Seconds of an epoch of another loop, or what went wrong in it."""
    pipe.send("go")
    return pipe.recv()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args, compute = parse(argv)
    device = compute.device
    train, test = load_images(args.data_dir, args.images)
    train = train.sample(min(args.images, len(train)))
    settings = {
        "images": train.source,
        "images_an_epoch": len(train),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "workers_of_the_others": args.workers,
        "compile": compute.compile_mode,
        "seed": 0,
        "versions_of_the_others": {
            name: importlib.metadata.version(name)
            for name in dict.fromkeys(package for loop in LOOPS.values() for package in loop.needs)
            if importlib.util.find_spec(name) is not None
        },
    }
    result = new_result("baseline", compute, settings)
    recipe = plain_recipe(args.batch_size, args.rounds + 1)
    options = {
        "images": train, "network": CustomResNet, "batch_size": args.batch_size,
        "epochs": recipe.epochs, "workers": args.workers, "device": device.type,
    }  # fmt: skip

    def turns(record) -> None:
        rates = {OURS: len(train) / (now(device) - mark[0])}
        for name, pipe in list(waiting.items()):
            seconds = turn_of(pipe)
            if isinstance(seconds, str):
                result["failed"][name] = seconds
                del waiting[name]
            else:
                rates[name] = len(train) / seconds
        # Round 0 is the warm-up, and is not in the summary.
        result["runs"].append({"round": record.epoch - 1, "images_per_s": rates})
        if len(result["runs"]) > 1:
            result["summary"] = summarise(result["runs"][1:], result["machine"])
        write_json(args.out, result)
        mark[0] = now(device)

    with others(result, **options) as pipes:
        waiting = dict(pipes)
        run_ = make_run(recipe, (train, test), compute)
        mark = [now(device)]
        fit_run(run_, on_epoch=turns)
    show(result)
    return result


def summarise(runs: list[dict[str, Any]], machine: dict[str, Any]) -> dict[str, Any]:
    """By loop the spread of its rates, and of how many times as fast ours is in the same round."""
    if machine["device"] != "cpu":
        goal = "no goal on this device: as measured"
    elif has_amx():
        goal = f"goal on a CPU with AMX: {GOAL:g}"
    else:
        goal = f"this CPU has no AMX: the goal of {GOAL:g} is for one that has"
    made = {}
    rates = [run["images_per_s"] for run in runs]
    for name in (OURS, *LOOPS):
        done = [row for row in rates if name in row]
        if done:
            made[name] = {"images_per_s": spread(row[name] for row in done)}
            if name != OURS:
                made[name]["ours_over_it"] = spread(row[OURS] / row[name] for row in done)
    return {"loops": made, "goal": goal}


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
