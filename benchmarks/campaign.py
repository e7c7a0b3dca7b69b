#!/usr/bin/env python3
"""Which recipe is best: a designed experiment on held-out images, then the test images once.

Three stages, each with a results file in ``--out``; runs that a file has are not made again:

1. ``factorial``: every combination of two values of four factors, so that each of 16 runs tells of each
   factor; held-out training images.
2. ``halving``: the present recipe with a lower LRMAX, and two that take over what helped; three seeds each,
   held-out training images.
3. ``chosen``: five seeds of the winner on all training images, evaluated on the test images.

    python benchmarks/campaign.py --data-dir DIR --compile default
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.accuracy import continued, summarise
from benchmarks.common import (
    RESULTS,
    new_result,
    parser,
    print_table,
    run_benchmark,
    settle,
    write_json,
)
from benchmarks.training import load_images, train_once
from onecycle.errors import DivergedError, UsageError
from onecycle.recipe import PRESETS, Recipe
from onecycle.training.compute import Compute

FACTORS = {
    "lr_max": (0.0016, 0.0032),
    "decay_per_step": (0.0009, 0.0019),
    "label_smoothing": (0.1, 0.2),
    "padding": ("constant", "reflect"),
}
"""Two values each; ``decay_per_step`` is LRMAX * weight decay, what a step takes of a weight at most."""
PRESENT = {
    "lr_max": 0.0023, "decay_per_step": 0.0023 * 0.4, "label_smoothing": 0.1, "padding": "constant",
}  # fmt: skip
"""Of the assignment's preset, but for LRMAX, which its range test finds a little higher."""
WITHIN = 0.0015
"""A recipe with fewer changes is taken if it is worse by no more than this."""
SEEDS = {"halving": (2, 3, 4), "chosen": (10, 11, 12, 13, 14)}


def recipe_of(levels: Mapping[str, Any], **fields: Any) -> Recipe:
    """The assignment's preset with values of the factors."""
    levels = dict(levels)
    decay = levels.pop("decay_per_step") / levels["lr_max"]
    return dataclasses.replace(PRESETS["assignment"], weight_decay=decay, **levels, **fields)


def design() -> list[tuple[dict[str, Any], int]]:
    """All combinations with the seed of each; runs that share a compiled graph follow each other."""
    rows = []
    for signs in itertools.product((0, 1), repeat=len(FACTORS)):
        levels = {name: values[sign] for (name, values), sign in zip(FACTORS.items(), signs)}
        rows.append((levels, sum(signs) % 2))  # confounded with the interaction of all four alone
    return sorted(rows, key=lambda row: row[0]["label_smoothing"])


def effects(runs: Sequence[Mapping[str, Any]], field: str = "accuracy") -> dict[str, Any]:
    """What each factor does: the mean at its second value minus that at its first.

    Args:
        runs: of the design, each with its ``levels``.
        field: of a run.

    Returns:
        By factor ``effect`` and its ``standard_error``, from what the factors leave unexplained.

    Raises:
        UsageError: there are too few runs to tell.
    """
    signs = np.array(
        [[1 if run["levels"][name] == values[1] else -1 for name, values in FACTORS.items()]
         for run in runs]
    )  # fmt: skip
    x = np.column_stack([np.ones(len(runs)), signs])
    free = len(runs) - x.shape[1]
    if free < 1 or np.linalg.matrix_rank(x) < x.shape[1]:
        raise UsageError(f"{len(runs)} runs do not tell the effects of {len(FACTORS)} factors")
    y = np.array([run[field] for run in runs])
    slopes = np.linalg.lstsq(x, y, rcond=None)[0]
    variance = float(((y - x @ slopes) ** 2).sum()) / free
    errors = 2 * np.sqrt(variance * np.diag(np.linalg.inv(x.T @ x)))
    return {
        name: {"effect": float(2 * slopes[k]), "standard_error": float(errors[k])}
        for k, name in enumerate(FACTORS, 1)
    }


def candidates(found: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """P0 is the present recipe; P1 and P2 take over effects above one and two standard errors."""
    made = {"P0": dict(PRESENT)}
    for name, least in (("P1", 1.0), ("P2", 2.0)):
        made[name] = PRESENT | {
            factor: FACTORS[factor][row["effect"] > 0]
            for factor, row in found.items()
            if abs(row["effect"]) > least * row["standard_error"]
        }
    return made


def choose(means: Mapping[str, float], recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """The best candidate, or one with fewer changes that is hardly worse."""
    changes = {
        name: sum(value != PRESENT[factor] for factor, value in recipes[name].items())
        for name in means
    }
    best = max(means.values())
    close = [name for name, mean in means.items() if mean >= best - WITHIN]
    return min(close, key=lambda name: (changes[name], -means[name]))


def parse(argv: Sequence[str] | None):
    made = parser(__doc__, "campaign", data_dir="cifar10", out=RESULTS)
    add = made.add_argument
    # fmt: off
    add("--stages", nargs="+", default=["factorial", "halving", "chosen"], metavar="STAGE")
    add("--val", type=int, default=5000, metavar="N", help="held-out images (%(default)s)")
    add("--limit-train", type=int, metavar="N", help="train on N images, to try the command out")
    add("--epochs", type=int, metavar="N", help="(24)")
    add("--batch-size", type=int, metavar="N", help="(512)")
    add("--most-seconds", type=float, default=math.inf, metavar="X",
        help="no run is begun that would end later")
    # fmt: on
    return made.parse_args(argv)


class Campaign:
    """The stages of a campaign and the files that they write."""

    def __init__(self, args) -> None:
        self.args, self.begin, self.longest = args, time.perf_counter(), 0.0
        device, precision = settle(args)
        self.compute = Compute(device, precision, args.compile)
        self.images = load_images(args.data_dir, 50_000)
        given = {"epochs": args.epochs, "batch_size": args.batch_size}
        self.fields = {name: value for name, value in given.items() if value is not None}

    def run(
        self, stage: str, rows: Sequence[tuple[str, Mapping[str, Any], int]], held_out: bool = True
    ) -> dict[str, Any]:
        """Make the runs (variant, levels, seed) of a stage that its file does not have: the file."""
        train, test = self.images
        train, test = train.hold_out(self.args.val) if held_out else (train, test)
        train, file = train.sample(self.args.limit_train), self.args.out / f"{stage}.json"
        settings = {
            "images": train.source, "num_train": len(train), "num_evaluated": len(test),
            "evaluated_on": test.name, "precision": self.compute.precision, "input": "batched",
            "compile": self.args.compile,
        }  # fmt: skip
        recipes = {name: recipe_of(levels, **self.fields) for name, levels, _ in rows}
        device, precision = self.compute.device, self.compute.precision
        fresh = new_result(stage, device, precision, settings, compile_mode=self.args.compile)
        result = continued(file, fresh, recipes)
        done = {(run["variant"], run["seed"]) for run in result["runs"]}
        missing = [row for row in rows if (row[0], row[2]) not in done]
        for count, (name, levels, seed) in enumerate(missing, 1):
            started = time.perf_counter()
            if started - self.begin + self.longest > self.args.most_seconds:
                result["broken_off"] = f"no time for {len(missing) - count + 1} of {len(rows)} runs"
                break
            recipe = dataclasses.replace(recipes[name], seed=seed)
            try:
                run = train_once(recipe, train, test, self.compute)
            except DivergedError as error:  # a result
                run = {"seed": seed, "failed": str(error)}
            result["runs"].append({"variant": name, "levels": dict(levels)} | run)
            result["recipes"][name] = dataclasses.asdict(recipes[name])
            result["summary"] = summarise(result["runs"])
            write_json(file, result)
            seconds = time.perf_counter() - started
            self.longest = max(self.longest, seconds if count > 1 else 0.0)
            said = run.get("failed") or f"{run['accuracy']:.2%}"
            print(f"{stage} {count}/{len(missing)}: {name}, seed {seed}: {said}, {seconds:.0f} s",
                  flush=True)  # fmt: skip
        write_json(file, result)
        return result

    def factorial(self) -> dict[str, Any]:
        """The effects of the factors."""
        rows = [(", ".join(map(str, levels.values())), levels, seed) for levels, seed in design()]
        result = self.run("factorial", rows)
        runs = [run for run in result["runs"] if "accuracy" in run]
        result["effects"] = {
            field: effects(runs, field) for field in ("accuracy", "accuracy_mirrored")
        }
        write_json(self.args.out / "factorial.json", result)
        print_table(
            ["factor", "effect on accuracy, points", "standard error"],
            [[name, f"{100 * row['effect']:+.2f}", f"{100 * row['standard_error']:.2f}"]
             for name, row in result["effects"]["accuracy"].items()],
        )  # fmt: skip
        return result

    def halving(self) -> str:
        """The best of three recipes."""
        recipes = candidates(self.factorial()["effects"]["accuracy"])
        rows = []
        for name, levels in recipes.items():  # the same recipe is run once
            if levels not in [row[1] for row in rows]:
                rows += [(name, levels, seed) for seed in SEEDS["halving"]]
        result = self.run("halving", sorted(rows, key=lambda row: row[1]["label_smoothing"]))
        done: dict[str, list[float]] = {}
        for run in result["runs"]:
            if "accuracy" in run:
                done.setdefault(run["variant"], []).append(run["accuracy"])
        best = choose({name: fmean(values) for name, values in done.items()}, recipes)
        result |= {"candidates": recipes, "chosen": best}
        write_json(self.args.out / "halving.json", result)
        print(f"chosen: {best}, {recipes[best]}", flush=True)
        return best

    def chosen(self) -> None:
        """What the chosen recipe gives on the test images."""
        best = self.halving()
        levels = candidates(self.factorial()["effects"]["accuracy"])[best]
        self.run("chosen", [(best, levels, seed) for seed in SEEDS["chosen"]], held_out=False)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(args)
    for stage in args.stages:
        if stage not in ("factorial", "halving", "chosen"):
            raise UsageError(f"--stages {stage}: there are factorial, halving and chosen")
        getattr(campaign, stage)()


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
