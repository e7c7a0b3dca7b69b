#!/usr/bin/env python3
"""Accuracy of recipes over seeds, after the last epoch, with and without mirrored images.

Every run is in the results file as soon as it is done. A second call with the same file makes only
the runs that are missing, so a campaign can be stopped at any time, and seeds or variants be added.

    python benchmarks/accuracy.py --data-dir DIR --val 5000 --limit-train 3000 --epochs 16 \\
        --batch-size 128 --seeds 0 1 2 --variant ours \\
        --variant "plain: weight_decay=0 label_smoothing=0 beta2=0.999 lr_max=0.01"
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    new_result,
    parser,
    print_table,
    run_benchmark,
    settle,
    spread,
    write_json,
)
from benchmarks.training import KINDS, check_input, load_images, train_once
from onecycle.errors import DivergedError, UsageError
from onecycle.recipe import PRESETS, Recipe, type_of, with_later_fields
from onecycle.training.compute import Compute

OVERRIDES = ("epochs", "peak_epoch", "batch_size")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "accuracy", data_dir="cifar10")
    add = made.add_argument
    # fmt: off
    add("--preset", default="assignment", choices=sorted(PRESETS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    add("--variant", action="append", metavar="NAME[: FIELD=VALUE ...]",
        help="a recipe: the preset but for the fields given; may be repeated")
    add("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="for all variants")
    add("--epochs", type=int, metavar="N")
    add("--peak-epoch", type=float, metavar="N")
    add("--batch-size", type=int, metavar="N")
    add("--input", default=KINDS[0], choices=KINDS, help="(%(default)s)")
    add("--val", type=int, metavar="N",
        help="evaluate on N training images that are held out, not on the test images")
    add("--limit-train", type=int, metavar="N", help="train on N images, the classes in proportion")
    add("--limit-test", type=int, metavar="N", help="evaluate on N images")
    # fmt: on
    return made.parse_args(argv)


def fields_of(assignments: Sequence[str]) -> dict[str, Any]:
    """``["lr_max=0.01", "lr_min=none"]`` as recipe fields, each of its own type."""
    types = get_type_hints(Recipe)
    given = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in types:
            raise UsageError(f"{assignment!r}: the recipe has {', '.join(types)}, as FIELD=VALUE")
        kind, may_be_none = type_of(types[name])
        try:
            if may_be_none and text.lower() == "none":
                given[name] = None
            elif kind is bool:
                given[name] = {"true": True, "false": False}[text.lower()]
            else:
                given[name] = kind(text) if kind in (int, float) else text
        except (ValueError, KeyError):
            raise UsageError(f"{assignment!r}: {name} is no {kind.__name__}") from None
    return given


def recipes_of(args: argparse.Namespace) -> dict[str, Recipe]:
    """The variants by name, all with seed 0."""
    base = {name: getattr(args, name) for name in OVERRIDES if getattr(args, name) is not None}
    made = {}
    for variant in args.variant or [args.preset]:
        name, _, assignments = variant.partition(":")
        fields = base | fields_of(args.set) | fields_of(assignments.split())
        if name in made or not name.strip():
            raise UsageError(f"variant {variant!r}: each needs a name of its own")
        made[name] = dataclasses.replace(PRESETS[args.preset], **fields, seed=0)
    return made


def continued(file: Path, fresh: dict[str, Any], recipes: dict[str, Recipe]) -> dict[str, Any]:
    """The results so far, where the file has some of the same settings; else ``fresh``."""
    here = fresh["settings"] | {"device": fresh["machine"]["device"]}
    try:
        found = fresh | {"recipes": {}, "runs": []}
        if file.exists():
            found = json.loads(file.read_text("utf-8"))
            found.pop("broken_off", None)  # said of the call before
        there = found["settings"] | {"device": found["machine"]["device"]}
        stored = found["recipes"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is no results file of this benchmark ({error!r})") from error
    differing = {
        name: (there.get(name), value) for name, value in here.items() if there.get(name) != value
    }
    for name, recipe in recipes.items():
        if name in stored and with_later_fields(stored[name]) != dataclasses.asdict(recipe):
            differing[f"variant {name}"] = ("another recipe", "this one")
    if differing:
        (name, (before, wanted)), *_ = differing.items()
        raise UsageError(
            f"{file} has runs with {name} {before}, not {wanted}; give another --out, or remove it"
        )
    return found


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By variant: the spread of the accuracies over the seeds, and what failed."""
    summary = {}
    for name in dict.fromkeys(run["variant"] for run in runs):
        mine = [run for run in runs if run["variant"] == name]
        done = [run for run in mine if "accuracy" in run]
        summary[name] = {"failed": len(mine) - len(done)}
        for field in ("accuracy", "accuracy_mirrored", "train_accuracy"):
            if done:
                summary[name][field] = spread(run[field] for run in done)
        if done:
            summary[name]["share_at_90"] = sum(run["accuracy"] >= 0.9 for run in done) / len(done)
            summary[name]["training_seconds"] = spread(run["seconds"]["training"] for run in done)
    return summary


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    device, precision = settle(args)
    recipes = recipes_of(args)
    train, test = load_images(args.data_dir, 50_000)
    if args.val is not None:
        train, test = train.hold_out(args.val)
    train, test = train.sample(args.limit_train), test.sample(args.limit_test)
    settings = {
        "images": train.source,
        "num_train": len(train),
        "num_evaluated": len(test),
        "evaluated_on": "test images" if args.val is None else "held-out training images",
        "precision": precision,
        "input": args.input,
        "compile": args.compile,
    }
    fresh = new_result("accuracy", device, precision, settings, compile_mode=args.compile)
    here = fresh["machine"]
    result = continued(args.out, fresh, recipes)
    for recipe in recipes.values():
        check_input(recipe, train, args.input)
    done = {(run["variant"], run["seed"]) for run in result["runs"]}
    missing = [(name, seed) for seed in args.seeds for name in recipes if (name, seed) not in done]
    for count, (name, seed) in enumerate(missing, 1):
        started = time.perf_counter()
        recipe = dataclasses.replace(recipes[name], seed=seed)

        def tell(record, name=name, seed=seed, epochs=recipe.epochs) -> None:
            print(
                f"{name}, seed {seed}: epoch {record.epoch} of {epochs}, "
                f"training accuracy {record.train_accuracy:.2%}",
                file=sys.stderr,
            )

        try:
            run = train_once(
                recipe, train, test, Compute(device, precision, args.compile), kind=args.input,
                on_epoch=tell,
            )  # fmt: skip
            said = f"{run['accuracy']:.2%}, mirrored {run['accuracy_mirrored']:.2%}"
        except DivergedError as error:  # a result; any other error ends the campaign
            run = {"seed": seed, "failed": str(error)}
            said = str(error)
        result = continued(args.out, fresh, recipes)  # another call may have added other runs
        elsewhere = {} if here == result["machine"] else {"machine": here}
        result["runs"].append({"variant": name} | run | elsewhere)
        result["recipes"][name] = dataclasses.asdict(recipes[name])
        result["summary"] = summarise(result["runs"])
        write_json(args.out, result)
        print(
            f"{count} of {len(missing)}: {name}, seed {seed}: {said}, "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
    print()
    print_accuracy(result)
    return result


def print_accuracy(result: dict[str, Any]) -> None:
    settings = result["settings"]
    print(
        f"{settings['images']}: trained on {settings['num_train']:,}, evaluated on "
        f"{settings['num_evaluated']:,} {settings['evaluated_on']}, last epoch"
    )
    rows = []
    for name, row in result["summary"].items():
        cells = [name, row.get("accuracy", {}).get("count", 0), row["failed"]]
        if "accuracy" in row:
            plain = row["accuracy"]
            cells += [
                f"{100 * plain['mean']:.2f} ± {100 * plain['std']:.2f}",
                f"{100 * plain['least']:.2f}",
                f"{100 * row['accuracy_mirrored']['mean']:.2f}",
                f"{100 * row['train_accuracy']['mean']:.2f}",
                f"{row['share_at_90']:.0%}",
                f"{row['training_seconds']['median']:.2f}",
            ]
        rows.append(cells + [""] * (9 - len(cells)))
    print_table(
        ["variant", "seeds", "failed", "accuracy %", "worst", "mirrored", "training", "at 90 %",
         "seconds"],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
