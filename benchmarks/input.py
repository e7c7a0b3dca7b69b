#!/usr/bin/env python3
"""Images a second of the training input: albumentations, image by image, and the batched path.

Both give normalised float32 batches on the device. Time runs from a variant's first batch on, so
that starting workers or placing the images does not count; it is reported as ``first_batch_s``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import (
    new_result,
    now,
    num_cores,
    parser,
    run_benchmark,
    settle,
    spread,
    write_json,
)
from benchmarks.tables import show
from benchmarks.training import load_images, make_run, plain_recipe
from onecycle.training.compute import Compute

GOALS = {"cpu": 5.0, "cuda": 15.0}
"""The batched path against the loader: on one core each, and a GPU against all workers."""


def parse(argv):
    made = parser(__doc__, "input")
    add = made.add_argument
    # fmt: off
    add("--images", type=int, default=10_000, metavar="N", help="how much noise, without --data-dir")
    add("--batch-size", type=int, default=512, metavar="N")
    add("--rounds", type=int, default=5, metavar="N")
    add("--seconds", type=float, default=2.0, metavar="X", help="of each variant in each round")
    add("--workers", type=int, metavar="N", help="processes of the loader (16, or as many as cores)")
    # fmt: on
    return made.parse_args(argv)


@dataclasses.dataclass
class Variant:
    name: str
    loader: Any
    device: torch.device
    threads: int


@contextlib.contextmanager
def threads_of(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(variant: Variant, seconds: float) -> dict[str, float]:
    """Images a second over at least ``seconds``, and how long the first batch took."""
    device, images, first = variant.device, 0, None
    with threads_of(variant.threads):
        begin = now(device)
        for epoch in itertools.count(1):
            variant.loader.set_epoch(epoch)
            for batch, labels in variant.loader:
                batch = batch.to(device, non_blocking=True)
                labels = labels.to(device, non_blocking=True)
                if first is None:
                    first = now(device)
                    continue
                images += len(batch)
                if time.perf_counter() - first >= seconds:
                    return {
                        "images_per_s": images / (now(device) - first),
                        "first_batch_s": first - begin,
                    }


def variants_of(args, device: torch.device, notes: dict[str, str]) -> list[Variant]:
    train, test = load_images(args.data_dir, args.images)
    recipe = plain_recipe(args.batch_size, epochs=24)
    cpu, cores = torch.device("cpu"), num_cores()
    workers = min(16, cores) if args.workers is None else args.workers
    made = []

    def add(name: str, kind: str, at: torch.device, threads: int, workers: int = 0) -> None:
        images = train
        if workers:  # an epoch must outlast the measurement, or starting workers would be in it
            images = train.subset(list(range(len(train))) * -(-workers * 20_000 // len(train)))
        try:
            run = make_run(recipe, (images, test), Compute(at), kind=kind, workers=workers)
        except ImportError as error:
            notes[name] = f"not measured: {error.name} is not installed"
            return
        made.append(Variant(name, run.train_loader, at, threads))

    add("albumentations, 1 core", "albumentations", cpu, 1)
    add("batched, 1 core", "batched", cpu, 1)
    if workers > 1 or device.type != "cpu":
        add(f"albumentations, {workers} workers", "albumentations", device, 1, workers)
        name = f"{cores} threads" if device.type == "cpu" else device.type
        add(f"batched, {name}", "batched", device, torch.get_num_threads())
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    compute = settle(args)
    device = compute.device
    settings = {
        "images": "random images" if args.data_dir is None else "those of the folder",
        "batch_size": args.batch_size,
        "seconds": args.seconds,
        "rounds": args.rounds,
        "seed": 0,
    }
    result = new_result("input", compute, settings)
    notes = result["notes"] = {}
    variants = variants_of(args, device, notes)
    for variant in variants:
        measure(variant, 0.0)  # warm-up
    for number in range(args.rounds):
        for variant in variants:
            run = {"round": number, "variant": variant.name} | measure(variant, args.seconds)
            result["runs"].append(run)
        result["summary"] = summarise(result["runs"], device)
        write_json(args.out, result)
    write_json(args.out, result)
    show(result)
    return result


def summarise(runs: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    rates, first = {}, {}
    for run in runs:
        rates.setdefault(run["variant"], []).append(run["images_per_s"])
        first.setdefault(run["variant"], []).append(run["first_batch_s"])
    summary = {
        "variants": {
            name: spread(values) | {"first_batch_s": max(first[name])}
            for name, values in rates.items()
        },
        "ratios": {},
    }
    names = list(rates)
    for batched, loader, goal in (
        ("batched, 1 core", "albumentations, 1 core", GOALS["cpu"]),
        ("batched, cuda", next((n for n in names if n.endswith("workers")), ""), GOALS["cuda"]),
    ):
        if batched in rates and loader in rates:
            ratios = [new / old for new, old in zip(rates[batched], rates[loader])]
            summary["ratios"][f"{batched} / {loader}"] = spread(ratios) | {"goal": goal}
    return summary


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
