#!/usr/bin/env python3
"""Small sets of pictures: random weights against the published ones as a start.

Each run trains on 80 % of a set and is judged on the rest, after its last epoch. ``shapes`` are
drawn (benchmarks/shapes.py), ``digits`` are scikit-learn's, ``pets`` are 60 cats and 60 dogs of the
training images in --data-dir, judged on 1,000 others of them, and a folder is your own. Every run
is in the results file as soon as it is done; a second call makes only the runs that are missing.

    python benchmarks/small_sets.py --sets shapes digits FOLDER --seeds 0 1 2 \\
        --variant "auto" --variant "none" --variant "none model=resnet18 image_size=64"
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.accuracy import fields_of
from benchmarks.common import new_result, parser, run_benchmark, settle, spread, write_json
from benchmarks.shapes import draw_shapes
from benchmarks.tables import show
from onecycle import Recipe, Run, load_cifar10, load_digits, load_folder
from onecycle.data.dataset import HELD_OUT, ImageDataset, Images
from onecycle.data.pictures import resize_images
from onecycle.results.networks import find_model

DIGITS = 240
WATCHED = 48
PETS = ("cat", "dog")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "small_sets", data_dir="cifar10")
    add = made.add_argument
    # fmt: off
    add("--sets", nargs="+", default=["shapes", "digits"], metavar="SET")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    add("--variant", action="append", metavar="START [model=NAME] [FIELD=VALUE ...]",
        help="auto, none or a file of weights, and fields of the recipe; may be repeated")
    # fmt: on
    return made.parse_args(argv)


def load_set(name: str, size: int, data_dir: str, scratch: Path) -> Images:
    """Training pictures and held-out ones."""
    if name == "shapes":
        return load_folder(draw_shapes(scratch / "shapes"), cache_dir=scratch, image_size=size)
    if name == "digits":
        few = load_digits(image_size=size)[0].sample(DIGITS)
        files = [f"{index}.png" for index in few.indices]  # as pictures: auto means the same
        return ImageDataset(few.data, few.targets, few.classes, "digits", files=files).hold_out(48)
    if name != "pets":
        return load_folder(name, cache_dir=scratch, image_size=size)
    train, _ = load_cifar10(data_dir)
    places = [np.flatnonzero(train.targets == train.classes.index(pet)) for pet in PETS]
    parts = []
    for chosen in (slice(0, 60), slice(60, 560)):
        kept = np.concatenate([own[chosen] for own in places])
        labels = np.arange(2).repeat(len(kept) // 2)
        images = resize_images(train.data[kept], size)
        parts.append(ImageDataset(images, labels, PETS, "cats and dogs", name=HELD_OUT))
    return tuple(parts)


def measure(
    data: Images, recipe: Recipe, start: str, model: str, args: argparse.Namespace
) -> dict[str, Any]:
    """One run of a variant."""
    train, held_out = data
    few = held_out.sample(min(len(held_out), WATCHED))  # after each epoch; in the end all
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        run = Run(folder, (train, few), find_model(model), recipe, init=start, device=args.device,
                  precision=args.precision, compile=args.compile)  # fmt: skip
        found = {"lr_max": run.find_lr().lr_max, "rule": run.find_lr().rule,
                 "finder_seconds": time.perf_counter() - begin}  # fmt: skip
        history = run.fit()
        found |= {
            "seconds": time.perf_counter() - begin,
            "accuracy": right(run, held_out), "right_of_few": run.evaluate().accuracy,
            "train_accuracy": history.epochs[-1].train_accuracy,
            "epochs": run.recipe.epochs, "batch_size": run.recipe.batch_size,
        }  # fmt: skip
    return found


def right(run: Run, images: ImageDataset) -> float:
    """The share of images that the network is right on, 0..1."""
    found = run.predict(list(images.data), top=1)
    labels = [images.classes[label] for label in images.targets]
    return float(np.mean([best.label == label for (best,), label in zip(found, labels)]))


def main(argv: Sequence[str] | None) -> None:
    args = parse(argv)
    compute, variants = settle(args), args.variant or ["auto", "none"]
    result = new_result("small_sets", compute, {"sets": args.sets})
    if args.out.exists():
        result["runs"] = json.loads(args.out.read_text("utf-8"))["runs"]
    done = {(run["set"], run["variant"], run["seed"]) for run in result["runs"]}
    with tempfile.TemporaryDirectory() as scratch:
        for name, seed, variant in itertools.product(args.sets, args.seeds, variants):
            if (Path(name).name, variant, seed) in done:
                continue
            start, *words = variant.split()
            models = [word.partition("=")[2] for word in words if word.startswith("model=")]
            fields = fields_of([word for word in words if not word.startswith("model=")])
            recipe = dataclasses.replace(Recipe(seed=seed), **fields)
            data = load_set(name, recipe.image_size or 32, args.data_dir, Path(scratch))
            about = {"set": Path(name).name, "train": len(data[0]), "held_out": len(data[1]),
                     "variant": variant, "seed": seed}  # fmt: skip
            found = measure(data, recipe, start, *models or ["custom_resnet"], args)
            result["runs"].append(about | found)
            print(result["runs"][-1], flush=True)
            result["summary"] = summary(result["runs"])
            write_json(args.out, result)
    show(result)


def seconds_of(runs: list[dict[str, Any]]) -> dict[str, float] | None:
    """Of the runs whose time was measured; those beside other work have none."""
    seconds = [run["seconds"] for run in runs if run["seconds"] is not None]
    return spread(seconds) if seconds else None


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy and seconds of each set and variant over the seeds."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        groups.setdefault((run["set"], run["variant"]), []).append(run)
    return {
        f"{name}: {variant}": {
            "set": name, "variant": variant, "train": own[0]["train"],
            "held_out": own[0]["held_out"], "epochs": own[0]["epochs"],
            "accuracy": spread(run["accuracy"] for run in own),
            "seconds": seconds_of(own),
        }
        for (name, variant), own in groups.items()
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
