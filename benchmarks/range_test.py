#!/usr/bin/env python3
"""How much LRMAX and LRMIN of the range test depend on the seed.

Three sets of images: the digits, 60 pictures of cats and 60 of dogs, and all of CIFAR-10. Each seed is
in the file as soon as it is done, and the same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.common import new_result, now, parser, run_benchmark, settle, write_json
from benchmarks.tables import show
from benchmarks.training import load_images, make_run
from onecycle.data.dataset import ImageDataset, Images
from onecycle.errors import RangeTestError, UsageError
from onecycle.recipe import PRESETS, Recipe
from onecycle.run_parts import finder_plan, range_test
from onecycle.training.compute import Compute

SETS = {"digits": 20, "pictures": 20, "cifar10": 3}
"""Images, and how many seeds."""
RECIPES = {
    "digits": PRESETS["digits"],
    "pictures": Recipe(batch_size=16),
    "cifar10": PRESETS["assignment"],
}
NUM_PICTURES = 60


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "range_test")
    add = made.add_argument
    add("--only", default=",".join(SETS), metavar="SETS", help="of digits,pictures,cifar10")
    add("--seeds", type=int, metavar="N", help="seeds of each set (20, 20 and 3)")
    args = made.parse_args(argv)
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(SETS):
        raise UsageError(f"--only has {', '.join(sorted(unknown))}; it may have {', '.join(SETS)}")
    if args.data_dir is None and set(args.only) != {"digits"}:
        raise UsageError(
            "--data-dir is missing; it names the folder of CIFAR-10, or take --only digits"
        )
    return args


def images_of(name: str, data_dir: str | None) -> Images:
    """Training and test images of a set."""
    train, test = load_images("digits" if name == "digits" else data_dir, 0)
    if name != "pictures":
        return train, test
    names = ("cat", "dog")

    def part(images: ImageDataset, count: int) -> ImageDataset:
        labels = [images.classes.index(which) for which in names]
        kept = np.concatenate([np.flatnonzero(images.targets == each)[:count] for each in labels])
        about = f"{count} cats and {count} dogs of {images.source}"
        return ImageDataset(images.data[kept], np.arange(2).repeat(count), names, about)

    return part(train, NUM_PICTURES), part(test, 10)


def measure(recipe: Recipe, images: Images, compute: Compute) -> dict[str, Any]:
    """The rates that a seed gives, and its curve; or why it gives none."""
    begin = now(compute.device)
    try:
        found, said = range_test(make_run(recipe, images, compute)), {}
    except RangeTestError as error:
        found, said = error.finding, {"refused": error.finding.rule}
    return {
        "seed": recipe.seed,
        "lr_max": found.lr_max,
        "lr_min": found.lr_min,
        **said,
        "seconds": now(compute.device) - begin,
        "losses": [round(loss, 4) for loss in found.losses],
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """For each set the mean rates and their spread: the largest over the smallest."""
    summary = {}
    for name in SETS:
        own = [run for run in runs if run["set"] == name]
        found = [run for run in own if run["lr_max"] is not None]
        if own:
            summary[name] = {"seeds": len(own), "refused": len(own) - len(found)}
        for rate in ("lr_max", "lr_min") if found else ():
            values = [run[rate] for run in found]
            summary[name][rate] = {
                "mean": geometric_mean(values),
                "least": min(values),
                "most": max(values),
                "spread": max(values) / min(values),
            }
    return summary


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    compute = settle(args)
    result = new_result("range_test", compute, {"sets": {}})
    if args.out.exists():
        before = json.loads(args.out.read_text("utf-8"))
        result["runs"], result["settings"] = before["runs"], before["settings"]
    for name in args.only:
        images, recipe = images_of(name, args.data_dir), RECIPES[name]
        sweeps, steps = finder_plan(recipe, len(images[0]))
        result["settings"]["sets"][name] = {
            "images": images[0].source,
            "num_train": len(images[0]),
            "batch_size": recipe.batch_size,
            "epochs": recipe.epochs,
            "sweeps": sweeps,
            "steps": steps,
            "precision": compute.precision,
        }
        done = {run["seed"] for run in result["runs"] if run["set"] == name}
        for seed in range(args.seeds or SETS[name]):
            if seed in done:
                continue
            run = measure(
                dataclasses.replace(recipe, seed=seed, lr_fallback=False), images, compute
            )
            result["runs"].append({"set": name, "threads": compute.describe()["threads"]} | run)
            result["summary"] = summarise(result["runs"])
            write_json(args.out, result)
    show(result)
    return result


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
