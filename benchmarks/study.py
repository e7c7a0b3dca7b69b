#!/usr/bin/env python3
"""A designed experiment: what several choices do to the accuracy, each with its standard error.

A design is a TOML file with factors at two levels, or with rows; README.md in this folder tells of it.
Every run is in the results file as soon as it is done, and a second call makes those that are missing.

    python benchmarks/study.py --data-dir DIR --design benchmarks/designs/screening.toml --jobs 2
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.accuracy import (
    Campaign,
    Done,
    collect,
    continued,
    in_order,
    in_turn,
    lacking,
    load_parts,
    settings_of,
)
from benchmarks.common import (
    RESULTS,
    new_result,
    num_cores,
    parser,
    run_benchmark,
    settle,
)
from benchmarks.design import Design, read_design
from benchmarks.effects import main_effects
from benchmarks.training import KINDS, check_input, make_run
from onecycle.errors import WorkerError
from onecycle.recipe import Recipe


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "study", data_dir="cifar10", out=None)
    add = made.add_argument
    # fmt: off
    add("--design", type=Path, required=True, metavar="FILE")
    add("--jobs", type=int, default=1, metavar="N",
        help="trainings at a time, each in a process with its share of the threads (%(default)s)")
    add("--most-seconds", type=float, default=math.inf, metavar="X",
        help="begin no run that would end later, by the longest so far")
    # fmt: on
    return made.parse_args(argv)


def make_campaign(args: argparse.Namespace, design: Design) -> Campaign:
    """What trains the rows, in this process."""
    if args.jobs > 1:
        torch.set_num_threads(max(num_cores() // args.jobs, 1))
    settings = design.settings
    images = load_parts(
        args.data_dir, settings["val"], settings["limit_train"], settings["limit_test"]
    )
    options = {"width": settings["width"], "averages": settings["averages"]}
    return Campaign(images, settle(args), KINDS[0], **options)


_worker: list[Campaign] = []


def _start(args: argparse.Namespace, design: Design) -> None:
    _worker.append(make_campaign(args, design))


def _train(name: str, recipe: Recipe) -> tuple[dict[str, Any], str, float]:
    begin = time.monotonic()
    return *_worker[0].train(name, recipe), time.monotonic() - begin


def check_rows(design: Design, campaign: Campaign) -> None:
    """Refuse a row that cannot be trained, before any is."""
    train, test = campaign.images
    for recipe in design.recipes.values():
        check_input(recipe, train, KINDS[0])
        few = train.subset(range(min(3 * recipe.batch_size, len(train)))), test
        make_run(recipe, few, campaign.compute, width=design.settings["width"])


def side_by_side(
    args: argparse.Namespace, design: Design, wanted: Sequence[tuple[str, Recipe]], end: float
) -> Iterator[Done]:
    """The runs in several processes, in the order in which they end, while there is time."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(args.jobs, spawn, _start, (args, design))
    running: dict[Future, tuple[str, Recipe]] = {}
    longest = 0.0
    try:
        waiting = list(wanted)
        while waiting or running:
            while waiting and len(running) < args.jobs and time.monotonic() + longest <= end:
                row = waiting.pop(0)
                running[pool.submit(_train, *row)] = row
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, recipe = running.pop(future)
                run, said, seconds = future.result()
                longest = max(longest, seconds)
                # Beside others: its seconds say nothing.
                yield name, recipe, run | {"seconds": None}, said
    except BrokenProcessPool as error:
        raise WorkerError(
            "a process that trains was killed, perhaps for lack of memory; use fewer --jobs"
        ) from error
    finally:
        for process in (pool._processes or {}).values() if running else ():
            process.terminate()  # an interrupt does not wait for the runs that have begun
        pool.shutdown(cancel_futures=True)


def averages_of(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By horizon: what an average of the weights adds to the accuracy, over all runs."""
    made = {}
    done = [run for run in runs if "accuracy_averaged" in run]
    for steps in done[0]["accuracy_averaged"] if done else ():
        added = [run["accuracy_averaged"][steps] - run["accuracy"] for run in done]
        error = stdev(added) / math.sqrt(len(added)) if len(added) > 1 else None
        made[steps] = {"effect": fmean(added), "standard_error": error, "count": len(added)}
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    begin = time.monotonic()
    args = parse(argv)
    design = read_design(args.design)
    out = args.out or RESULTS / f"{args.design.stem}.json"
    campaign = make_campaign(args, design)
    settings = settings_of(campaign.images, campaign.compute)
    settings |= {name: design.settings[name] for name in ("width", "averages", "val")}
    fresh = new_result("accuracy", campaign.compute, settings) | {"about": design.settings["about"]}
    result = continued(out, fresh, design.recipes)
    check_rows(design, campaign)
    wanted = lacking(result, in_order(design.recipes, design.seeds, campaign.compute))
    end = begin + args.most_seconds
    runs = (
        in_turn(campaign, wanted, end) if args.jobs == 1
        else side_by_side(args, design, wanted, end)
    )  # fmt: skip

    def derive(recipes, runs) -> dict[str, Any]:
        said = {
            "effects": main_effects(design.signs, design.levels, runs),
            "averages": averages_of(runs),
        }
        return {name: found for name, found in said.items() if found}

    return collect(out, fresh, design.recipes, wanted, runs, derive)


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
