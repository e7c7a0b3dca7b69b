#!/usr/bin/env python3
"""The whole loop against a plain one, written the way public solutions of the assignment are.

Plain: float32, default memory format, a DataLoader with the albumentations pipeline, ``.item()``
after every step. Same network, same images, same batch size. The two take turns, an epoch each; the
first of each is the warm-up. The plain one has a process of its own, which ``tune_process``
has not touched.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from torch.utils.data import DataLoader

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
from benchmarks.tables import show
from benchmarks.training import fit_run, load_images, make_run, plain_recipe
from models import CustomResNet
from onecycle.errors import UsageError
from transformation import get_train_aug_transform

GOAL = 3.0
"""The ratio to reach on a CPU with AMX."""


def parse(argv):
    made = parser(__doc__, "baseline")
    add = made.add_argument
    # fmt: off
    add("--images", type=int, metavar="N", help="an epoch (512; 50,000 on a GPU)")
    add("--batch-size", type=int, metavar="N", help="(256; 512 on a GPU)")
    add("--rounds", type=int, default=5, metavar="N", help="(%(default)s)")
    add("--workers", type=int, metavar="N", help="of the plain loop's DataLoader (0; 2 on a GPU)")
    # fmt: on
    args = made.parse_args(argv)
    compute = settle(args)
    if args.rounds < 1:
        raise UsageError(f"--rounds is {args.rounds}; it must be 1 or more")
    set_sizes(args, compute.device, images=(512, 50_000), batch_size=(256, 512), workers=(0, 2))
    return args, compute


class PlainTraining:
    """The loop as it is commonly written, an epoch at a time."""

    def __init__(self, train, *, batch_size: int, epochs: int, workers: int, device) -> None:
        torch.manual_seed(0)
        transform = get_train_aug_transform(train.mean, train.std)
        self.device = device
        self.loader = DataLoader(
            train.with_transform(transform),
            batch_size=batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        self.model = CustomResNet().to(device)
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=0.001,
            epochs=epochs,
            steps_per_epoch=len(self.loader),
            pct_start=0.3,  # 1 / pct_start steps would divide by zero
        )

    def epoch(self) -> float:
        """The epoch's accuracy, 0..1."""
        self.model.train()
        correct = processed = 0
        for data, target in self.loader:
            data, target = data.to(self.device), target.to(self.device)
            self.optimizer.zero_grad()
            output = self.model(data)
            loss = self.criterion(output, target)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            correct += (output.argmax(dim=1) == target).sum().item()
            processed += len(data)
            f"loss={loss.item():.4f} accuracy={100 * correct / processed:.2f}"  # as a bar would
        return correct / processed


_plain: PlainTraining
"""In the process of the plain loop."""


def begin_plain(train, options: dict[str, Any]) -> None:
    global _plain
    _plain = PlainTraining(train, **options)


def plain_epoch() -> float:
    """Seconds."""
    begin = now(_plain.device)
    _plain.epoch()
    return now(_plain.device) - begin


def own_process(*begin: Any) -> Executor:
    """A process that begins with a function, given with its arguments, and waits for calls."""
    return ProcessPoolExecutor(1, get_context("spawn"), begin[0], begin[1:])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args, compute = parse(argv)
    device = compute.device
    if importlib.util.find_spec("albumentations") is None:
        raise UsageError("the plain loop needs albumentations, which is not installed")
    train, test = load_images(args.data_dir, args.images)
    train = train.sample(min(args.images, len(train)))
    settings = {
        "images": train.source,
        "images_an_epoch": len(train),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "plain_workers": args.workers,
        "compile": compute.compile_mode,
        "seed": 0,
    }
    result = new_result("baseline", compute, settings)
    recipe = plain_recipe(args.batch_size, args.rounds + 1)
    options = {"batch_size": args.batch_size, "epochs": recipe.epochs, "workers": args.workers}

    def turn(record) -> None:
        ours = now(device) - mark[0]
        rates = {
            "round": record.epoch - 1,  # 0 is the warm-up, and is not in the summary
            "ours_images_per_s": len(train) / ours,
            "plain_images_per_s": len(train) / plain.submit(plain_epoch).result(),
        }
        result["runs"].append(rates)
        if len(result["runs"]) > 1:
            result["summary"] = summarise(result["runs"][1:], result["machine"])
        write_json(args.out, result)
        mark[0] = now(device)

    with own_process(begin_plain, train, options | {"device": device}) as plain:
        run = make_run(recipe, (train, test), compute)
        mark = [now(device)]
        fit_run(run, on_epoch=turn)
    show(result)
    return result


def summarise(runs: list[dict[str, Any]], machine: dict[str, Any]) -> dict[str, Any]:
    ours, plain = ([run[f"{name}_images_per_s"] for run in runs] for name in ("ours", "plain"))
    if machine["device"] != "cpu":
        goal = "no goal on this device: as measured"
    elif has_amx():
        goal = f"goal on a CPU with AMX: {GOAL:g}"
    else:
        goal = f"this CPU has no AMX: the goal of {GOAL:g} is for one that has"
    return {
        "ours": spread(ours),
        "plain": spread(plain),
        "ratio": spread(a / b for a, b in zip(ours, plain)),
        "goal": goal,
    }


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
