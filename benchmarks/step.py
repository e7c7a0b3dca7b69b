#!/usr/bin/env python3
"""The whole training loop against the bare step on constant data, and against a matrix product.

The bare step is forward, loss, backward and optimizer on one batch that lies on the device; the
loop is ``fit`` with its input. They take turns in one process: a round of the bare step after
each epoch of the loop, whose first is the warm-up. On a GPU also with our own kernels, compiled, and
as a CUDA graph of the bare step, captured by hand.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from benchmarks.common import (
    FLOP_PER_TRAINED_IMAGE,
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
from onecycle.data.dataset import Images
from onecycle.run import Run
from onecycle.training.compute import PRECISIONS, Compute

GOAL = 0.95
LOOPS = ("eager", "graph", "fused", "fused-graph", "reduce-overhead", "default")
"""Ways to compute, for bare step and loop: nothing, a CUDA graph, our own kernels, both of these, and
torch.compile's modes."""
GRAPHS = ("default-graph",)
"""CUDA graphs of the bare step alone; this one finds its kernels compiled."""


def parse(argv):
    made = parser(__doc__, "step")
    add = made.add_argument
    # fmt: off
    add("--images", type=int, metavar="N", help="an epoch of the loop (768; 50,000 on a GPU)")
    add("--batch-size", type=int, metavar="N", help="(256; 512 on a GPU)")
    add("--rounds", type=int, default=5, metavar="N")
    add("--modes", nargs="+", metavar="M",
        help=f"{', '.join(LOOPS + GRAPHS)} (eager on a CPU, all on a GPU)")
    add("--product", type=int, metavar="N", help="side of the matrices (4096; 8192 on a GPU)")
    add("--profile", action="store_true", help="say which operations an epoch's time goes to")
    # fmt: on
    args = made.parse_args(argv)
    compute = settle(args)
    set_sizes(
        args, compute.device, images=(768, 50_000), batch_size=(256, 512), product=(4096, 8192),
        modes=(["eager"], [*LOOPS, *GRAPHS]),
    )  # fmt: skip
    return args, compute


def product_tflops(side: int, device: torch.device, kind: str, rounds: int) -> list[float]:
    """TFLOP/s of a square matrix product; "tf32" is float32 in a GPU's shorter format."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    dtype = PRECISIONS.get(kind, torch.float32)
    try:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        repeats = 20 if device.type == "cuda" else 1
        rates = []
        for _ in range(rounds + 1):
            begin = now(device)
            for _ in range(repeats):
                a @ b
            rates.append(2 * side**3 * repeats / (now(device) - begin) / 1e12)
        return rates[1:]  # without the warm-up
    finally:
        torch.set_float32_matmul_precision(before)


class Objective(nn.Module):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model, self.criterion = run.model, run.criterion

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(self.model(images), labels)


def bare_step(run: Run, images: Tensor, labels: Tensor, mode: str) -> Callable:
    """One training step on a batch that stays, to be called again and again.

    A run that is to be fused has that from its making.
    """
    objective = Objective(run)
    run.model.train()
    if torch_mode := run.compute.torch_compile_mode:
        objective = torch.compile(objective, mode=torch_mode, dynamic=False)

    def step() -> None:
        with run.compute.autocast():
            loss = objective(images, labels)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()

    return captured(step, run.optimizer) if mode.endswith("graph") else step


def captured(step: Callable, optimizer: torch.optim.Optimizer) -> Callable:
    """The step as a CUDA graph."""
    for group in optimizer.param_groups:
        group["capturable"] = True
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side_stream)
    optimizer.zero_grad()  # so that the gradients are made inside, in the graph's memory
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def constant_batch(run: Run) -> tuple[Tensor, Tensor]:
    generator, size = torch.Generator().manual_seed(0), run.recipe.batch_size
    images = torch.randn(size, 3, 32, 32, generator=generator)
    labels = torch.randint(0, len(run.train.classes), (size,), generator=generator)
    return run.compute.place(images), run.compute.place(labels)


def time_bare(step: Callable, steps: int, batch_size: int, device: torch.device) -> float:
    """Images a second."""
    begin = now(device)
    for _ in range(steps):
        step()
    return steps * batch_size / (now(device) - begin)


def in_mode(compute: Compute, mode: str) -> Compute:
    """The same, computing in the way of a mode."""
    way = {"eager": None, "default-graph": "default"}.get(mode, mode)
    return dataclasses.replace(compute, compile_mode=way)


def measure(mode: str, args, compute: Compute, images: Images) -> dict[str, Any]:
    """The rounds of one mode: bare step and, where it has this mode, the loop, by turns."""
    device, recipe = compute.device, plain_recipe(args.batch_size, args.rounds + 1)
    begin = now(device)
    # Kept, because a graph does not keep what it works on.
    bare = make_run(recipe, images, in_mode(compute, mode))
    step = bare_step(bare, *constant_batch(bare), mode)
    for _ in range(3 if device.type == "cuda" else 1):
        step()
    made = {"mode": mode, "set_up_s": {"bare": now(device) - begin}, "bare": [], "loop": []}
    steps = max(1, len(images[0]) // args.batch_size)
    if mode in GRAPHS:
        made["bare"] = [time_bare(step, steps, args.batch_size, device) for _ in range(args.rounds)]
        return made
    run = make_run(recipe, images, in_mode(compute, mode))
    loader = run.train_loader
    count = sum(loader.global_batch(i) for i in range(len(loader)))
    mark = [now(device)]

    def turn(record) -> None:
        seconds = now(device) - mark[0]
        if record.epoch == 1:
            made["set_up_s"]["loop"] = seconds  # with its first epoch
        else:
            made["loop"].append(count / seconds)
            made["bare"].append(time_bare(step, steps, args.batch_size, device))
        mark[0] = now(device)

    fit_run(run, on_epoch=turn)
    return made


def profile(args, compute: Compute, images: Images, mode: str) -> list[dict[str, Any]]:
    """What one epoch of the loop spends its time on: the operations that take the most."""
    run = make_run(plain_recipe(args.batch_size, epochs=3), images, in_mode(compute, mode))
    gpu = compute.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if gpu else []
    with torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=1),
        acc_events=True,
    ) as profiler:
        fit_run(run, on_epoch=lambda record: profiler.step() if record.epoch < 3 else None)
    own = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = [
        event
        for event in profiler.key_averages()
        # On a GPU its kernels alone: the operations that started them have the same time again.
        if (not gpu or event.device_type == torch.autograd.DeviceType.CUDA)
        and not getattr(event, "is_user_annotation", False)
        and not event.key.startswith("ProfilerStep")
    ]
    events.sort(key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events) or 1
    return [
        {"operation": event.key[:80], "calls": event.count, "share": getattr(event, own) / total,
         "milliseconds": getattr(event, own) / 1e3}
        for event in events[:20]
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args, compute = parse(argv)
    device, precision = compute.device, compute.precision
    train, test = load_images(args.data_dir, args.images)
    train = train.sample(min(args.images, len(train)))
    settings = {
        "images": train.source,
        "images_an_epoch": len(train),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "product_side": args.product,
        "seed": 0,
    }
    result = new_result("step", in_mode(compute, "eager"), settings)
    result["failed"] = {}
    kinds = dict.fromkeys([precision, "bfloat16", "float32"])
    kinds |= {"tf32": None} if device.type == "cuda" else {}
    result["products"] = {
        kind: product_tflops(args.product, device, kind, args.rounds) for kind in kinds
    }
    for mode in args.modes:
        try:
            result["runs"].append(measure(mode, args, compute, (train, test)))
        except Exception as error:  # one mode that fails must not take the others along
            result["failed"][mode] = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
        result["summary"] = summarise(result, precision)
        write_json(args.out, result)
    if args.profile:
        mode = result["summary"].get("fastest_loop", "eager")
        few = train.sample(min(20 * args.batch_size, len(train)))
        try:
            operations = profile(args, compute, (few, test), mode)
            result["profile"] = {"mode": mode, "steps": len(few) // args.batch_size,
                                 "operations": operations}  # fmt: skip
        except Exception as error:
            result["failed"]["profile"] = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
        write_json(args.out, result)
    show(result)
    for row in result.get("profile", {}).get("operations", [])[:10]:
        print(f"{row['share']:6.1%}  {row['milliseconds']:9.1f} ms  {row['operation']}")
    return result


def summarise(result: dict[str, Any], precision: str) -> dict[str, Any]:
    products = {kind: spread(rates) for kind, rates in result["products"].items()}
    # On a GPU convolutions of float32 are tf32's, unless torch is told otherwise.
    kind = "tf32" if precision == "float32" and "tf32" in products else precision
    peak = products[kind]["median"]
    summary = {"products_tflops": products, "product": kind, "modes": {}, "goal": GOAL}
    for run in result["runs"]:
        row = summary["modes"][run["mode"]] = {"set_up_s": run["set_up_s"]}
        for part in ("bare", "loop"):
            if run[part]:
                row[part] = spread(run[part])
                tflops = row[part]["median"] * FLOP_PER_TRAINED_IMAGE / 1e12
                row[part] |= {"tflops": tflops, "share_of_product": tflops / peak}
        if run["loop"]:
            row["loop_over_bare"] = spread(a / b for a, b in zip(run["loop"], run["bare"]))
    loops = {name: row["loop"]["median"] for name, row in summary["modes"].items() if "loop" in row}
    bare = {name: row["bare"]["median"] for name, row in summary["modes"].items()}
    if loops:
        fastest = summary["fastest_loop"] = max(loops, key=loops.get)
        summary["fastest_bare"] = max(bare, key=bare.get)
        # Against the fastest bare step of all, whatever its mode.
        summary["fastest_loop_over_fastest_bare"] = loops[fastest] / max(bare.values())
    return summary


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
