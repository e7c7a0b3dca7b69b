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
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import (
    new_result,
    parser,
    run_benchmark,
    settle,
    spread,
    write_json,
)
from benchmarks.effects import effects_of
from benchmarks.tables import show
from benchmarks.training import (
    KINDS,
    WIDTH,
    check_input,
    graph_of,
    load_images,
    train_once,
    warm_up,
)
from onecycle.commands.options import add_fields, given
from onecycle.data.dataset import Images
from onecycle.errors import DivergedError, UsageError
from onecycle.recipe import PRESETS, TYPES, Recipe, with_later_fields
from onecycle.training.compute import Compute


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "accuracy", data_dir="cifar10")
    add = made.add_argument
    # fmt: off
    add("--preset", default="assignment", choices=sorted(PRESETS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    add("--variant", action="append", metavar="NAME[: FIELD=VALUE ...]",
        help="a recipe: the preset but for the fields given, with seed=N of that seed alone; may be "
        "repeated")
    add("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="for all variants")
    add("--input", default=KINDS[0], choices=KINDS, help="(%(default)s)")
    add("--val", type=int, metavar="N",
        help="evaluate on N training images that are held out, not on the test images")
    add("--limit-train", type=int, metavar="N", help="train on N images, the classes in proportion")
    add("--limit-test", type=int, metavar="N", help="evaluate on N images")
    add("--most-seconds", type=float, default=math.inf, metavar="X",
        help="begin no run that would end later, by the longest so far")
    # fmt: on
    add_fields(made.add_argument_group("recipe of all variants (else the preset's)"), Recipe)
    return made.parse_args(argv)


def fields_of(words: Sequence[str]) -> dict[str, Any]:
    """``["lr_max=0.01", "lr_min=none"]`` as recipe fields, each of its own type."""
    found = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in TYPES:
            raise UsageError(f"{word!r}: the recipe has {', '.join(TYPES)}, as FIELD=VALUE")
        kind, may_be_none = TYPES[name]
        try:
            if may_be_none and text.lower() == "none":
                found[name] = None
            elif kind is bool:
                found[name] = {"true": True, "false": False}[text.lower()]
            else:
                found[name] = kind(text) if kind in (int, float) else text
        except (ValueError, KeyError):
            raise UsageError(f"{word!r}: {name} is of type {kind.__name__}") from None
    return found


def recipes_of(args: argparse.Namespace) -> tuple[dict[str, Recipe], dict[str, list[int]]]:
    """The variants by name, and the seeds of each: its own, or those of all."""
    made, seeds = {}, {}
    for variant in args.variant or [args.preset]:
        name, _, words = variant.partition(":")
        fields = (
            {"seed": None} | given(args, Recipe) | fields_of(args.set) | fields_of(words.split())
        )
        if name in made or not name.strip():
            raise UsageError(f"variant {variant!r}: each needs a name of its own")
        own = fields.pop("seed")
        seeds[name] = args.seeds if own is None else [own]
        made[name] = dataclasses.replace(PRESETS[args.preset], **fields, seed=own or 0)
    return made, seeds


def continued(file: Path, fresh: dict[str, Any], recipes: dict[str, Recipe]) -> dict[str, Any]:
    """The results so far, where the file has some of the same settings; else ``fresh``."""
    here = fresh["settings"] | {"device": fresh["machine"]["device"]}
    try:
        found = fresh | {"recipes": {}, "runs": []}
        if file.exists():
            found = json.loads(file.read_text("utf-8"))
            for said_before in ("broken_off", "missing"):
                found.pop(said_before, None)
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
            alone = all(run["seconds"] is not None for run in done)  # on the machine
            seconds = spread(run["seconds"]["training"] for run in done) if alone else None
            summary[name]["training_seconds"] = seconds
    return summary


def load_parts(
    data_dir: str, val: int | None, limit_train: int | None, limit_test: int | None
) -> Images:
    """The images to train and to evaluate on."""
    train, test = load_images(data_dir, 50_000)
    if val is not None:
        train, test = train.hold_out(val)
    return train.sample(limit_train), test.sample(limit_test)


def settings_of(images: Images, compute: Compute, kind: str = KINDS[0]) -> dict[str, Any]:
    train, test = images
    return {
        "images": train.source,
        "num_train": len(train),
        "num_evaluated": len(test),
        "evaluated_on": test.name,
        "precision": compute.precision,
        "input": kind,
        "compile": compute.compile_mode,
    }


class Campaign:
    """Trains one recipe after the other, and knows what the next one will take.

    Args:
        images: to train and to evaluate on.
        compute: where and how.
        kind: of the input.
        options: more of :func:`train_once`.
    """

    def __init__(self, images: Images, compute: Compute, kind: str, **options: Any) -> None:
        self.images, self.compute, self.kind, self.options = images, compute, kind, options
        self.graph: tuple[Any, ...] | None = None
        self.longest = self.longest_compiling = 0.0

    def needs(self, recipe: Recipe) -> float:
        """Seconds that a run will take, by the longest so far."""
        compiling = 0.0 if self.graph == graph_of(recipe) else self.longest_compiling
        return self.longest + compiling

    def train(self, name: str, recipe: Recipe) -> tuple[dict[str, Any], str]:
        """A run of the results file, and a few words on it."""

        def tell(record) -> None:
            print(
                f"{name}, seed {recipe.seed}: epoch {record.epoch} of {recipe.epochs}, "
                f"training accuracy {record.train_accuracy:.2%}",
                file=sys.stderr,
            )

        begin, compiling = time.perf_counter(), 0.0
        try:
            if self.compute.device.type == "cuda" and self.graph != graph_of(recipe):
                width = self.options.get("width", WIDTH)
                compiling = warm_up(recipe, self.images, self.compute, width)
                self.graph = graph_of(recipe)
            run = train_once(
                recipe, self.images, self.compute,
                kind=self.kind, on_epoch=tell, compiled=compiling, **self.options,
            )  # fmt: skip
            said = f"{run['accuracy']:.2%}, mirrored {run['accuracy_mirrored']:.2%}"
        except DivergedError as error:  # a result; any other error ends the campaign
            run, said = {"seed": recipe.seed, "failed": str(error)}, str(error)
        seconds = time.perf_counter() - begin
        self.longest = max(self.longest, seconds - compiling)
        self.longest_compiling = max(self.longest_compiling, compiling)
        return run, f"{said}, {seconds:.0f} s"


def own_effects(recipes: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a file says beside its summary: the effects, if its recipes are a full factorial."""
    return {"effects": found} if (found := effects_of(recipes, runs)) else {}


Done = tuple[str, Recipe, dict[str, Any], str]
"""A run: its name, its recipe, what it measured and a few words on it."""


def store(
    file: Path,
    fresh: dict[str, Any],
    recipes: dict[str, Recipe],
    name: str,
    run: dict[str, Any],
    derive: Callable[..., dict[str, Any]] = own_effects,
) -> dict[str, Any]:
    """Add a run to the file, with what ``derive(recipes, runs)`` says of all; what is in it now."""
    result = continued(file, fresh, recipes)  # another call may have added other runs
    elsewhere = {} if fresh["machine"] == result["machine"] else {"machine": fresh["machine"]}
    result["runs"].append({"variant": name} | run | elsewhere)
    result["recipes"][name] = dataclasses.asdict(recipes[name])
    result["summary"] = summarise(result["runs"])
    result.pop("effects", None)
    planned = result["recipes"] | {name: dataclasses.asdict(r) for name, r in recipes.items()}
    result |= derive(planned, result["runs"])
    write_json(file, result)
    return result


def in_turn(campaign: Campaign, wanted: Sequence[tuple[str, Recipe]], end: float) -> Iterator[Done]:
    """The runs one after the other, while there is time."""
    for name, recipe in wanted:
        if time.monotonic() + campaign.needs(recipe) > end:
            return
        yield name, recipe, *campaign.train(name, recipe)


def lacking(result: Mapping[str, Any], planned: Sequence[tuple[str, Recipe]]) -> list:
    """The planned runs that a file does not have."""
    done = {(run["variant"], run["seed"]) for run in result["runs"]}
    return [(name, recipe) for name, recipe in planned if (name, recipe.seed) not in done]


def collect(
    file: Path,
    fresh: dict[str, Any],
    recipes: dict[str, Recipe],
    wanted: Sequence[tuple[str, Recipe]],
    runs: Iterator[Done],
    derive: Callable[..., dict[str, Any]] = own_effects,
) -> dict[str, Any]:
    """Store and tell each run when it is done, then those for which there was no time."""
    result = continued(file, fresh, recipes)
    with contextlib.closing(runs):
        for count, (name, recipe, run, said) in enumerate(runs, 1):
            result = store(file, fresh, recipes, name, run, derive)
            print(f"{count} of {len(wanted)}: {name}, seed {recipe.seed}: {said}", flush=True)
    if missing := lacking(result, wanted):
        result["missing"] = [[name, recipe.seed] for name, recipe in missing]
        write_json(file, result)
        print(f"no time for {len(missing)} of {len(wanted)} runs", flush=True)
    print()
    show(result)
    return result


def in_order(
    recipes: dict[str, Recipe], seeds: dict[str, list[int]], compute: Compute
) -> list[tuple[str, Recipe]]:
    """All runs: seeds take turns over the variants, compiled ones graph by graph."""
    every = dict.fromkeys(seed for name in recipes for seed in seeds[name])
    runs = [
        (name, dataclasses.replace(recipe, seed=seed))
        for seed in every
        for name, recipe in recipes.items()
        if seed in seeds[name]
    ]
    if compute.compile_mode is not None:
        graphs = list(dict.fromkeys(graph_of(recipe) for _, recipe in runs))
        runs.sort(key=lambda run: graphs.index(graph_of(run[1])))
    return runs


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    begin = time.monotonic()
    args = parse(argv)
    compute = settle(args)
    recipes, seeds = recipes_of(args)
    images = load_parts(args.data_dir, args.val, args.limit_train, args.limit_test)
    fresh = new_result("accuracy", compute, settings_of(images, compute, args.input))
    result = continued(args.out, fresh, recipes)
    for recipe in recipes.values():
        check_input(recipe, images[0], args.input)
    campaign = Campaign(images, compute, args.input)
    wanted = lacking(result, in_order(recipes, seeds, compute))
    runs = in_turn(campaign, wanted, begin + args.most_seconds)
    return collect(args.out, fresh, recipes, wanted, runs)


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
