#!/usr/bin/env python3
"""Seconds and peak memory of a training against images, epochs and batch size.

Each point is measured in a process of its own, since peak memory cannot be set back: a warm-up of
two steps, then the training, several times. Seconds should be a straight line in images and epochs
and not depend on the batch size; memory should be a straight line in the batch size, and grow with
the images by no more than the images themselves, and with the epochs not at all. On a CPU what the
allocator happens to keep moves it by a few percent.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import (
    line_through,
    new_result,
    now,
    parser,
    run_benchmark,
    set_sizes,
    settle,
    write_json,
)
from benchmarks.tables import show
from benchmarks.training import fit_run, load_images, make_run, plain_recipe
from onecycle.training.compute import Compute

AXES = ("images", "batch_size", "epochs")


def parse(argv):
    made = parser(__doc__, "scaling")
    add = made.add_argument
    # fmt: off
    add("--images", type=int, nargs="+", metavar="N", help="(256 512 1024; 12,500 to 50,000 on a GPU)")
    add("--batch-size", type=int, nargs="+", metavar="N", help="(32 64 128; 128 to 1024 on a GPU)")
    add("--epochs", type=int, nargs="+", metavar="N", help="(1 2 4)")
    add("--rounds", type=int, default=2, metavar="N")
    add("--point", metavar="JSON", help="measure one point in this process, and print it")
    # fmt: on
    args = made.parse_args(argv)
    compute = settle(args)
    set_sizes(
        args, compute.device,
        images=([256, 512, 1024], [12_500, 25_000, 50_000]),
        batch_size=([32, 64, 128], [128, 256, 512, 1024]),
        epochs=([1, 2, 4], [1, 2, 4]),
    )  # fmt: skip
    return args, compute


def points_of(args) -> list[tuple[str, dict[str, int]]]:
    """Each axis varied with the others at the middle of theirs; the epochs' middle is one."""
    middle = {name: getattr(args, name)[len(getattr(args, name)) // 2] for name in AXES}
    middle["epochs"] = args.epochs[0]
    return [
        (axis, middle | {axis: value}) for axis in AXES for value in getattr(args, axis)
    ]  # fmt: skip


def peak_memory(device: torch.device) -> int:
    """Bytes: of the process, or of the GPU's tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(point: dict[str, int], args, compute: Compute) -> dict[str, Any]:
    """Seconds of each round and the peak memory."""
    device, (train, test) = compute.device, load_images(args.data_dir, point["images"])
    train = train.sample(point["images"])
    before = peak_memory(device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
    seconds = []

    def training(images, epochs: int) -> float:
        run = make_run(plain_recipe(point["batch_size"], epochs), (images, test), compute)
        begin = now(device)
        fit_run(run)
        return now(device) - begin

    training(train.sample(min(2 * point["batch_size"], len(train))), 2)  # warm-up
    for _ in range(args.rounds):
        if device.type == "cuda":  # without the room in which cuDNN first tries its kernels
            torch.cuda.reset_peak_memory_stats(device)
        seconds.append(training(train, point["epochs"]))
    return {"seconds": seconds, "memory_bytes": peak_memory(device) - before}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args, compute = parse(argv)
    if args.point is not None:
        made = measure(json.loads(args.point), args, compute)
        print(json.dumps(made))
        return made
    settings = {"rounds": args.rounds, "compile": compute.compile_mode, "seed": 0} | {
        name: getattr(args, name) for name in AXES
    }
    result = new_result("scaling", compute, settings)
    result["failed"] = {}
    measured = {}
    for axis, point in points_of(args):
        key = json.dumps(point, sort_keys=True)
        if key not in measured:
            try:
                measured[key] = in_own_process(key, args, compute)
            except RuntimeError as error:
                result["failed"][key] = str(error)
                continue
        result["runs"].append({"axis": axis} | point | measured[key])
        result["summary"] = summarise(result["runs"])
        write_json(args.out, result)
    write_json(args.out, result)
    show(result)
    return result


def in_own_process(point: str, args, compute: Compute) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--point", point, "--rounds", str(args.rounds),
        "--device", compute.device.type, "--precision", compute.precision,
        *(["--data-dir", args.data_dir] if args.data_dir else []),
        "--compile", compute.compile_mode or "off",
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By axis: the lines of seconds and memory, and how much the last point is of the first."""
    summary = {}
    for axis in AXES:
        mine = [run for run in runs if run["axis"] == axis]
        if len(mine) < 2:
            continue
        x = [run[axis] for run in mine]
        # The least of the rounds: what disturbs a measurement only ever adds to it.
        seconds, memory = [min(run["seconds"]) for run in mine], [r["memory_bytes"] for r in mine]
        summary[axis] = {
            "times": x[-1] / x[0],
            "seconds": line_through(x, seconds) | {"last_over_first": seconds[-1] / seconds[0]},
            "memory_bytes": line_through(x, memory)
            | {"last_over_first": memory[-1] / max(memory[0], 1)},
        }
    return summary


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
