#!/usr/bin/env python3
"""How time and memory grow: images on the disk, image size, classes, processes, errors, start-up.

Each point is measured in a process of its own. ``images`` are not trained: they lie on the disk as an
array that is mapped, as decoded pictures do, and what is measured is what a training waits for before
its first step, and how fast their batches come when nothing of the file is in memory. Everything else
is trained or evaluated for a moment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from benchmarks.common import new_result, now, parser, run_benchmark, settle, write_json
from benchmarks.scale_figure import draw_scale
from benchmarks.scaling import peak_memory
from benchmarks.tables import show
from benchmarks.training import fit_run, plain_recipe, random_images
from models import CustomResNet
from onecycle.data.dataset import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, ImageDataset
from onecycle.results.folder import to_picture
from onecycle.run import Run
from onecycle.training.compute import Compute
from onecycle.training.joining import join_group

ROOT = Path(__file__).resolve().parent.parent
POINTS: dict[str, tuple[Any, ...]] = {
    "images": (5_000, 50_000, 500_000, 5_000_000),
    "image_size": (32, 64, 128, 224),
    "classes": (2, 10, 100, 1000),
    "processes": (1, 2, 4),
    "errors": (10, 1_000, 100_000),
    "start": ("python -c 'import torch'", "python -c 'import onecycle'", "onecycle --help",
              "onecycle train --help", "onecycle predict PICTURE", "onecycle train, 64 digits"),
}  # fmt: skip
"""What is varied, and its values."""
MEASURED = {
    "images": ("open_seconds", "images_per_s", "memory_bytes"),
    "image_size": ("images_per_s", "memory_bytes"),
    "classes": ("images_per_s", "memory_bytes"),
    "processes": ("images_per_s",),
    "errors": ("seconds", "report_bytes", "memory_bytes"),
    "start": ("seconds",),
}
"""What each point says of itself."""
BATCH = 512


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "scale")
    add = made.add_argument
    # fmt: off
    add("--only", nargs="+", default=list(POINTS), choices=POINTS, metavar="AXIS", help=", ".join(POINTS))
    add("--most", type=int, default=5_000_000, metavar="N", help="points up to this number")
    add("--scratch", type=Path, metavar="DIR", help="for files of images, 3 kB each (the system's)")
    add("--point", metavar="JSON", help="measure one point in this process, and print it")
    # fmt: on
    return made.parse_args(argv)


# --- the points ---------------------------------------------------------------------------------


def write_images(file: Path, count: int) -> None:
    """``count`` images of noise, which repeats: nobody looks at it."""
    block = random_images(min(count, 50_000)).data
    images = np.lib.format.open_memmap(file, "w+", np.uint8, (count, *block.shape[1:]))
    for start in range(0, count, len(block)):
        images[start : start + len(block)] = block[: count - start]
    images.flush()


def forget(images: np.ndarray, file: Path) -> None:
    """Leave nothing of a mapped file in memory, so that it is read from the disk."""
    if hasattr(os, "posix_fadvise"):  # not on macOS or Windows
        images._mmap.madvise(mmap.MADV_DONTNEED)
        with open(file, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(device: torch.device, field: str = "VmHWM") -> int:
    """Bytes of this process at its peak, or of the GPU's tensors; RssAnon: now, without files."""
    if device.type == "cuda" or not Path("/proc/self/status").exists():
        return peak_memory(device)
    # Not getrusage's, which begins with that of the process that started this one.
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_images(count: int, args: argparse.Namespace, compute: Compute) -> dict[str, Any]:
    """What a training of images on the disk waits for, and the rate of its batches."""
    file = Path(args.scratch) / "images.npy"
    images = np.load(file, mmap_mode="r")
    forget(images, file)
    before, begin = memory(compute.device, "RssAnon"), now(compute.device)
    train = ImageDataset(images, np.arange(count) % 10, CIFAR10_CLASSES, "images on the disk")
    run = make_run(train, compute, batch_size=BATCH)
    digest = run.identity["data"]["sha256"][0]  # and before it mean and deviation
    opened = now(compute.device)
    forget(images, file)
    batches = iter(run.train_loader)
    next(batches)
    start = now(compute.device)
    read = sum(len(labels) for _, labels in islice(batches, 40))
    seconds = now(compute.device) - start
    batches.close()
    return {
        "open_seconds": opened - begin, "images_per_s": read / seconds,
        "memory_bytes": memory(compute.device, "RssAnon") - before, "kept_on_device": not hasattr(
            run.train_loader.transform, "fetch"), "sha256": digest,
    }  # fmt: skip


def make_run(
    train: ImageDataset,
    compute: Compute,
    *,
    batch_size: int,
    test: ImageDataset | None = None,
    model: Callable[[int], nn.Module] | None = None,
    folder: str = "unwritten",
    group: Any = None,
) -> Run:
    """A run of one epoch at a given rate."""
    few = train.subset(range(min(len(train), 64)))
    return Run(
        folder, (train, test or few), model or CustomResNet, plain_recipe(batch_size, 1), init="none",
        device=compute.device.type, precision=compute.precision,
        compile=compute.compile_mode or "off", group=group,
    )  # fmt: skip


def train_twice(
    images: ImageDataset, batch_size: int, compute: Compute, group: Any = None
) -> dict[str, Any]:
    """Images per second of the second of two epochs, the first warms up."""
    before = memory(compute.device)
    for _ in range(2):
        run = make_run(images, compute, batch_size=batch_size, group=group)
        begin = now(compute.device)
        fit_run(run)
        seconds = now(compute.device) - begin
    return {
        "images_per_s": len(images) / seconds,
        "memory_bytes": memory(compute.device) - before,
    }


def noise(count: int, size_px: int = 32, classes: int = 10) -> ImageDataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)
    names = [f"class {label}" for label in range(classes)]
    normal = CIFAR10_MEAN, CIFAR10_STD
    return ImageDataset(images, np.arange(count) % classes, names, "random images", stats=normal)


def measure_errors(count: int, compute: Compute) -> dict[str, Any]:
    """The folder of a finished run whose network guesses on ``count`` images."""

    def small(classes: int) -> nn.Module:
        layers = nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(128, classes)
        return nn.Sequential(*layers)

    test = noise(count)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        run = make_run(noise(64), compute, batch_size=16, test=test, model=small, folder=folder)
        run.fit()
        wrong = len(run.evaluate().wrong)
        before, begin = memory(compute.device), now(compute.device)
        run.save()
        return {
            "errors_made": wrong,
            "seconds": now(compute.device) - begin,
            "report_bytes": (Path(folder) / "report.html").stat().st_size,
            "memory_bytes": memory(compute.device) - before,
        }


def measure_start(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The least of three times of a whole command."""
    python, folder = [sys.executable], Path(tempfile.mkdtemp(dir=args.scratch))
    onecycle = [*python, "-m", "onecycle"]
    train = ["train", "--dataset", "digits", "--limit-train", "64", "--limit-test", "16",
             "--batch-size", "16", "--epochs", "1", "--lr-max", "0.01", "--device", "cpu"]  # fmt: skip
    commands = {
        "python -c 'import torch'": [*python, "-c", "import torch"],
        "python -c 'import onecycle'": [*python, "-c", "import onecycle; onecycle.Run"],
        "onecycle --help": [*onecycle, "--help"],
        "onecycle train --help": [*onecycle, "train", "--help"],
        "onecycle predict PICTURE": [*onecycle, "predict", str(ROOT / "images" / "sample.png")],
        "onecycle train, 64 digits": [*onecycle, *train],
    }
    seconds = []
    for turn in range(3):
        command = commands[name] + (["--out", f"{folder}/{turn}"] if "digits" in name else [])
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": min(seconds)}


def measure(axis: str, value: Any, args: argparse.Namespace, compute: Compute) -> dict[str, Any]:
    """One point, in this process; of a group of processes nothing but the first one's."""
    if axis == "images":
        return measure_images(value, args, compute)
    if axis == "image_size":  # as many pixels in a batch of each size
        return train_twice(noise(64, value), 16, compute)
    if axis == "classes":
        return train_twice(noise(max(256, value), classes=value), 64, compute)
    if axis == "errors":
        return measure_errors(value, compute)
    with join_group(compute.device) as group:
        found = train_twice(noise(256), 64, compute, group)
        return found if group.rank == 0 else {}


def in_own_process(axis: str, value: Any, args: argparse.Namespace, compute: Compute) -> dict:
    """One point, in a process of its own, or in a group of them."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(value), "--standalone"]
    command = [
        sys.executable, *(launch if axis == "processes" else []), __file__,
        "--point", json.dumps([axis, value]), "--scratch", str(args.scratch),
        "--device", compute.device.type, "--precision", compute.precision,
        "--compile", compute.compile_mode or "off",
    ]  # fmt: skip
    threads = {"OMP_NUM_THREADS": "1"} if axis == "processes" else {}  # a core for each
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | threads
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return next(found for line in lines if (found := json.loads(line)))


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By axis: the slope of each measurement between its last two points, of logarithms.

    1: it grows as the axis does; 0: not at all.
    """
    summary = {}
    for axis, names in MEASURED.items():
        own = [run for run in runs if run["axis"] == axis]
        if len(own) < 2 or axis == "start":
            continue
        summary[axis] = {}
        for name in names:
            x, y = ([run[key] for run in own[-2:]] for key in ("value", name))
            if min(y) > 0:
                rise = math.log(y[1] / y[0]) / math.log(x[1] / x[0])
                summary[axis][name] = {"slope": rise}
    return summary


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    compute = settle(args)
    if args.point is not None:
        found = measure(*json.loads(args.point), args, compute)
        print(json.dumps(found))
        return found
    result = new_result("scale", compute, {"batch_size": BATCH, "image_size": 32})
    result["failed"] = {}
    if args.out.exists():  # the axes that are not measured now
        kept = json.loads(args.out.read_text("utf-8"))["runs"]
        result["runs"] = [run for run in kept if run["axis"] not in args.only]
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        args.scratch = Path(folder)
        for axis in args.only:
            for value in POINTS[axis]:
                if axis != "start" and value > args.most:
                    continue
                if axis == "images":
                    write_images(args.scratch / "images.npy", value)
                try:
                    if axis == "start":
                        found = measure_start(value, args)
                    else:
                        found = in_own_process(axis, value, args, compute)
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    result["failed"][f"{axis} {value}"] = str(error)
                    continue
                result["runs"].append({"axis": axis, "value": value} | found)
                print(result["runs"][-1], flush=True)
                result["runs"].sort(key=lambda run: list(POINTS).index(run["axis"]))
                result["summary"] = summarise(result["runs"])
                write_json(args.out, result)
    show(result)
    args.out.with_suffix(".png").write_bytes(to_picture(draw_scale(result)))
    return result


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
