"""What the benchmarks share: the command line, the clock, statistics, the results file."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch

from onecycle.commands.common import run_command
from onecycle.files import write_whole
from onecycle.training.compute import PRECISIONS, Compute, tune_process

RESULTS = Path(__file__).resolve().parent / "results"
FLOP_PER_TRAINED_IMAGE = 2.272e9
"""Forward and backward pass of one image; a multiply-add counts as two."""


# --- the command line ---------------------------------------------------------------------------


def parser(about: str, name: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    # fmt: off
    add("--data-dir", metavar="DIR", help="CIFAR-10 as onecycle train takes it, or 'digits'")
    add("--device", default="auto", metavar="D", help="auto, cuda, mps or cpu")
    add("--precision", default="auto", metavar="P", help=f"auto, {', '.join(PRECISIONS)}")
    add("--compile", default="off", metavar="M", help="off, graph, fused, fused-graph, default or reduce-overhead")
    add("--out", type=Path, default=RESULTS / f"{name}.json", metavar="FILE",
        help=f"results file (benchmarks/results/{name}.json)")
    # fmt: on
    made.set_defaults(**defaults)
    return made


def settle(args: argparse.Namespace) -> Compute:
    """Where and how to compute, by the options."""
    tune_process()
    return Compute.choose(args.device, args.precision, args.compile)


def set_sizes(args: argparse.Namespace, device: torch.device, **sizes: tuple[Any, Any]) -> None:
    """Give each option that was not given its size: a small one, or a large one on a GPU."""
    for name, (small, large) in sizes.items():
        if getattr(args, name) is None:
            setattr(args, name, large if device.type == "cuda" else small)


def run_benchmark(main: Callable[[Sequence[str] | None], Any]) -> int:
    """Run a benchmark's ``main``; the exit code."""

    def run() -> None:
        main(None)

    return run_command(run, kept="the runs that are done are in their file")


# --- the clock and statistics -------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    """Wait until everything that was asked of the device is done."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def now(device: torch.device) -> float:
    """Seconds, when the device has done all that was asked of it."""
    synchronise(device)
    return time.perf_counter()


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, mean, standard deviation (of a sample; 0 for one value), least and most."""
    values = list(values)
    return {
        "median": median(values),
        "mean": fmean(values),
        "std": stdev(values) if len(values) > 1 else 0.0,
        "least": min(values),
        "most": max(values),
        "count": len(values),
    }


def line_through(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Slope, intercept and R squared of the straight line of least squares."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + intercept)
    total = float(((np.asarray(y) - np.mean(y)) ** 2).sum())
    r2 = 1.0 if total == 0 else 1 - float((residual**2).sum()) / total
    return {"slope": float(slope), "intercept": float(intercept), "r2": r2}


# --- results ------------------------------------------------------------------------------------


def machine(compute: Compute) -> dict[str, Any]:
    """What the figures depend on."""
    return compute.describe() | {"cores": num_cores(), "amx": has_amx()}


def num_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_amx() -> bool:
    """Whether the processor has the matrix unit for bfloat16."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text("ascii", "replace").split()
    except OSError:
        return False


def write_json(file: Path, result: dict[str, Any]) -> None:
    """Write a results file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")


def new_result(name: str, compute: Compute, settings: dict[str, Any]) -> dict[str, Any]:
    """The form of every results file; ``runs`` and ``summary`` are to be filled."""
    return {
        "benchmark": name,
        "machine": machine(compute),
        "settings": settings,
        "runs": [],
        "summary": {},
    }
