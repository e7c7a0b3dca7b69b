#!/usr/bin/env python3
"""Small sets of pictures: random weights against the published ones as a start.

Each run trains on 80 % of a set and is judged on the rest, after its last epoch. ``shapes`` are
drawn (benchmarks/shapes.py), ``digits`` are scikit-learn's, and a folder is your own. Every run is
in the results file as soon as it is done; a second call makes only the runs that are missing.

    python benchmarks/small_sets.py --sets shapes digits FOLDER --seeds 0 1 2 \\
        --variant "auto" --variant "none" --variant "auto lr_max=0.002 epochs=20"
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.accuracy import fields_of
from benchmarks.common import new_result, parser, run_benchmark, settle, spread, write_json
from benchmarks.shapes import draw_shapes
from models import CustomResNet
from onecycle import Recipe, Run, load_digits, load_folder
from onecycle.data.dataset import ImageDataset, Images
from onecycle.errors import UsageError

DIGITS = 240


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "small_sets", data_dir="")
    add = made.add_argument
    # fmt: off
    add("--sets", nargs="+", default=["shapes", "digits"], metavar="SET")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    add("--variant", action="append", metavar="START [FIELD=VALUE ...]",
        help="auto, none or a file of weights, and fields of the recipe; may be repeated")
    # fmt: on
    return made.parse_args(argv)


def load_set(name: str, scratch: Path) -> Images:
    """Training pictures and held-out ones."""
    if name == "shapes":
        return load_folder(draw_shapes(scratch / "shapes"), cache_dir=scratch)
    if name != "digits":
        return load_folder(name, cache_dir=scratch)
    few = load_digits()[0].sample(DIGITS)
    files = [f"{index}.png" for index in few.indices]  # as pictures, so that auto means the same
    return ImageDataset(few.data, few.targets, few.classes, "digits", files=files).hold_out(48)


def measure(data: Images, variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One run of a variant."""
    start, *words = variant.split()
    recipe = dataclasses.replace(Recipe(seed=seed), **fields_of(words))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        run = Run(folder, data, CustomResNet, recipe, init=start, device=args.device,
                  precision=args.precision, compile=args.compile)  # fmt: skip
        found = {"lr_max": run.find_lr().lr_max, "finder_seconds": time.perf_counter() - begin}
        history = run.fit()
        found |= {
            "accuracy": run.evaluate().accuracy, "seconds": time.perf_counter() - begin,
            "train_accuracy": history.epochs[-1].train_accuracy,
            "epochs": run.recipe.epochs, "batch_size": run.recipe.batch_size,
        }  # fmt: skip
    return found


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    compute, variants = settle(args), args.variant or ["auto", "none"]
    result = new_result("small_sets", compute, {"sets": args.sets})
    if args.out.exists():
        result["runs"] = json.loads(args.out.read_text("utf-8"))["runs"]
    done = {(run["set"], run["variant"], run["seed"]) for run in result["runs"]}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.sets:
            data = load_set(name, Path(scratch))
            about = {"set": Path(name).name, "train": len(data[0]), "held_out": len(data[1])}
            for variant, seed in [(v, s) for s in args.seeds for v in variants]:
                if (about["set"], variant, seed) in done:
                    continue
                try:
                    found = measure(data, variant, seed, args)
                except UsageError as error:
                    found = {"refused": str(error)}
                result["runs"].append(about | {"variant": variant, "seed": seed} | found)
                print(result["runs"][-1], flush=True)
                result["summary"] = summary(result["runs"])
                write_json(args.out, result)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy of each set and variant over the seeds."""
    groups: dict[str, list[float]] = {}
    for run in runs:
        if "accuracy" in run:
            groups.setdefault(f"{run['set']}: {run['variant']}", []).append(run["accuracy"])
    return {name: spread(values) for name, values in groups.items()}


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
