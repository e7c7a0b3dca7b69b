#!/usr/bin/env python3
"""Public references beside the ``speedrun`` preset: same images, same machine, by turns.

Each folder in DIR with an executable ``run.sh`` is a reference; README.md in this folder says what
it is given and what it is to print. Nothing of it is part of this repository. Ours is trained for
several numbers of epochs, so that a reference can be compared at the accuracy that it reaches.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.common import (
    new_result,
    parser,
    run_benchmark,
    settle,
    spread,
    write_json,
)
from benchmarks.tables import show
from benchmarks.training import load_images
from onecycle.data.dataset import ImageDataset
from onecycle.errors import UsageError
from onecycle.recipe import PRESETS

OURS = "this repository"


def parse(argv):
    made = parser(__doc__, "references", data_dir="cifar10")
    add = made.add_argument
    # fmt: off
    add("--references", type=Path, required=True, metavar="DIR")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    add("--preset", default="speedrun", choices=sorted(PRESETS))
    add("--epochs", type=int, nargs="+", default=[4, 8, 12], metavar="N", help="of ours")
    add("--most-seconds", type=float, default=60.0, metavar="X", help="of one run")
    # fmt: on
    return made.parse_args(argv)


def write_images(file: Path, train: ImageDataset, test: ImageDataset) -> None:
    """What a reference is given: four arrays."""
    np.savez(
        file, train_images=train.data, train_labels=train.targets,
        test_images=test.data, test_labels=test.targets,
    )  # fmt: skip


def run_reference(
    folder: Path, images: Path, labels: np.ndarray, seed: int, most_s: float
) -> dict[str, Any]:
    """One run: what it printed, and the accuracy of the probabilities that it left."""
    with tempfile.TemporaryDirectory() as out:
        surroundings = {"IMAGES": str(images), "SEED": str(seed), "OUT": out}
        begin = time.perf_counter()
        try:
            process = subprocess.Popen(
                [str(folder.resolve() / "run.sh")], cwd=folder, env=os.environ | surroundings,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
            try:
                printed, complained = process.communicate(timeout=most_s)
            finally:
                # With what it started, which would keep the GPU busy for the runs that follow.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            if process.returncode:
                last = complained.strip().splitlines()[-1:] or ["no message"]
                return {"failed": f"ended with {process.returncode}: {last[0]}"}
            said = json.loads(printed.strip().splitlines()[-1])
            if not all(math.isfinite(said[name]) for name in ("accuracy", "training_seconds")):
                return {"failed": f"its numbers are not finite: {said}"}
        except subprocess.TimeoutExpired:
            return {"failed": f"ended after {most_s:.0f} s"}
        except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
            return {"failed": f"{type(error).__name__}: {error}"}
        run = said | {"whole_seconds": time.perf_counter() - begin}
        left = Path(out) / "probabilities.npy"
        if left.exists():
            predicted = np.load(left, allow_pickle=False).argmax(1)
            run["accuracy_reported"] = run.get("accuracy")
            run["accuracy"] = float((predicted == labels).mean())
        return run


def run_ours(args, seed: int, out: Path) -> dict[str, dict[str, Any]]:
    """A run of the preset for each number of epochs, by accuracy.py in a process of their own."""
    file = out / f"ours-{seed}.json"
    names = [f"{OURS}, {epochs} epochs" for epochs in args.epochs]
    variants = [f"{name}: epochs={epochs}" for name, epochs in zip(names, args.epochs)]
    command = [
        sys.executable, str(Path(__file__).parent / "accuracy.py"), "--preset", args.preset,
        *[word for variant in variants for word in ("--variant", variant)],
        "--data-dir", args.data_dir, "--device", args.device, "--precision", args.precision,
        "--seeds", str(seed), "--out", str(file), "--compile", args.compile or "off",
    ]  # fmt: skip
    most_s = args.most_seconds * len(names)
    said = {}
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=most_s, check=True)
    except subprocess.TimeoutExpired:
        said = {"failed": f"ended after {most_s:.0f} s"}
    except subprocess.CalledProcessError as error:
        said = {"failed": (error.stderr.strip().splitlines() or ["no message"])[-1]}
    # Those that were done before it failed count.
    found = json.loads(file.read_text("utf-8"))["runs"] if file.exists() else []
    runs = dict.fromkeys(names, said)
    for run in found:
        runs[run["variant"]] = {"failed": run["failed"]} if "failed" in run else {
            "accuracy": run["accuracy"],
            "accuracy_mirrored": run["accuracy_mirrored"],
            "views": 1,
            # A reference's seconds have its preparation in them too.
            "training_seconds": run["seconds"]["preparation"] + run["seconds"]["training"],
            "preparation_seconds": run["seconds"]["preparation"],
            "compiling_seconds": run["seconds"]["compiling"],
        }  # fmt: skip
    return runs


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    compute = settle(args)
    found = sorted(path.parent for path in args.references.glob("*/run.sh"))
    if not found:
        raise UsageError(f"{args.references} has no folder with a run.sh; see benchmarks/README.md")
    train, test = load_images(args.data_dir, 0)
    settings = {
        "images": train.source,
        "num_train": len(train),
        "num_test": len(test),
        "preset": args.preset,
        "epochs": args.epochs,
        "most_seconds": args.most_seconds,
        "seeds": args.seeds,
    }
    result = new_result("references", compute, settings)
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images.npz"
        write_images(images, train, test)
        for seed in args.seeds:
            for name, run in run_ours(args, seed, Path(scratch)).items():
                result["runs"].append({"name": name, "seed": seed} | run)
            store(args.out, result)
            for folder in found:
                run = run_reference(folder, images, test.targets, seed, args.most_seconds)
                result["runs"].append({"name": folder.name, "seed": seed} | run)
                store(args.out, result)
    show(result)
    return result


def store(file: Path, result: dict[str, Any]) -> None:
    result["summary"] = summarise(result["runs"])
    write_json(file, result)


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By name the spreads, and of a reference how many times ours its seconds are when as good."""
    summary = {}
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        done = [run for run in mine if "failed" not in run]
        summary[name] = {"done": len(done), "failed": len(mine) - len(done)}
        if done:
            summary[name] |= {
                "views": done[0].get("views", 1),
                "accuracy": spread(run["accuracy"] for run in done),
                "training_seconds": spread(run["training_seconds"] for run in done),
            }
            if all("accuracy_mirrored" in run for run in done):  # two views, beside those of others
                mirrored = spread(run["accuracy_mirrored"] for run in done)
                summary[name]["accuracy_mirrored"] = mirrored
    ours = [row for name, row in summary.items() if name.startswith(OURS) and row["done"]]
    for name, row in summary.items():
        if row["done"] and not name.startswith(OURS):
            row["against_ours"] = at_equal_accuracy(row, ours)
    return summary


def at_equal_accuracy(reference: dict[str, Any], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """A reference's seconds over those that ours takes to its mean accuracy.

    Ours is taken along straight lines between the numbers of epochs, by two views of an image where
    the reference takes several. There is no ratio where the most epochs are not enough, and it is
    a bound where the fewest are more than enough.
    """
    field = "accuracy_mirrored" if reference["views"] > 1 else "accuracy"
    accuracy, points = reference["accuracy"]["mean"], []
    for row in ours:
        points.append((row["training_seconds"]["median"], row[field]["mean"]))
    points.sort()
    below = [index for index, (_, reached) in enumerate(points) if reached < accuracy]
    if not points or (below and below[-1] == len(points) - 1):
        return {"said": "not reached"}
    seconds = points[0][0]
    if below:  # from the last one: more epochs that gave less were luck before
        (start, low), (end, high) = points[below[-1]], points[below[-1] + 1]
        seconds = start + (accuracy - low) / (high - low) * (end - start)
    ratio = reference["training_seconds"]["median"] / seconds
    said = f"{ratio:.2f}" + ("" if below else " or more")
    return {"seconds": seconds, "ratio": ratio, "said": said}


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
