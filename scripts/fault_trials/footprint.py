"""What a training holds, opens and costs."""

from __future__ import annotations

import gc
import io
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import small_runs
import torch
from torch import nn

from models import CustomResNet
from onecycle.optim.adam import get_optimizer
from onecycle.results.figures import training as visualize
from onecycle.training.checkpoint import LAST

from .common import ROOT, scaled

IMAGES_PER_S = 128
"""A stated speed of training, to say what share of an epoch of 50,000 images a save takes."""
OFFLINE_IMPORT = """
import sys
opened = []
sys.addaudithook(lambda name, args: opened.append(name) if name.startswith("socket.") else None)
import train, training_run, evaluate, predict, visualize, error_figures
import transformation
transformation.get_train_aug_transform((0.5,) * 3, (0.3,) * 3)
print(sorted(set(opened)))
"""


def _resources() -> dict[str, int]:
    gc.collect()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    memory = Path("/proc/self/statm").read_text().split()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old names that isinstance looks at
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(children),
        "figures": len(plt.get_fignums()),
        "tensors": tensors,
        "memory_bytes": int(memory) * os.sysconf("SC_PAGE_SIZE"),
    }


def _epochs(number: int, folder: Path) -> dict[str, Any]:
    """A training with evaluation, saves and figures in each epoch, and what it holds then."""
    opened, seen = [], []
    sys.addaudithook(lambda name, args: opened.append(name) if name.startswith("socket.") else None)
    small_runs.EPOCHS = number
    parts = small_runs.make()
    loader = small_runs.Batches()
    classes = ("one", "other")
    rng = np.random.default_rng(0)

    def on_epoch(record) -> None:
        labels, predicted = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
        records.append(record)
        for figure in (
            visualize.plot_history(records[-3:], source="noise"),
            visualize.plot_confusion_matrix(labels, predicted, source="noise", classes=classes),
        ):
            figure.savefig(io.BytesIO(), format="png")
        del figure
        seen.append(_resources())

    records: list = []
    saved = small_runs.new(folder / "run", every_s=0.0)
    small_runs.fit(
        parts["model"], loader, loader.to_evaluate, parts["optimizer"], parts["scheduler"],
        nn.CrossEntropyLoss(), epochs=number, precision="bfloat16", checkpoint=saved,
        on_epoch=on_epoch,
    )  # fmt: skip
    return {"seen": seen, "sockets": sorted(set(opened))}


def _save_milliseconds(folder: Path, times: int) -> tuple[float, float]:
    """The median of some saves of the real network with Adam's state, and the file's megabytes."""
    model = CustomResNet()
    optimizer = get_optimizer(model, lr=0.001, weight_decay=0.1, betas=(0.9, 0.99))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    saved, took = small_runs.new(folder / "real"), []
    for _ in range(times + 1):
        begun = time.perf_counter()
        saved.save({"model": model, "optimizer": optimizer}, now=True)
        took.append(1000 * (time.perf_counter() - begun))
    return statistics.median(took[1:]), (folder / "real" / LAST).stat().st_size / 1e6


def footprint(share: float, folder: Path) -> dict[str, Any]:
    """Twenty epochs in one process, sockets, and what a save costs at the real size."""
    failures, number, left = [], scaled(20, share, 6), folder / "left.json"
    status = small_runs.in_child(
        lambda: left.write_text(json.dumps(_epochs(number, folder))) and None
    )
    if status:
        raise RuntimeError(f"the training ended with {status}")
    found = json.loads(left.read_text())
    seen = found["seen"]
    for name in ("descriptors", "children", "figures", "tensors"):
        values = [each[name] for each in seen[2:]]
        if len(set(values)) > 1:
            failures.append(f"{name} after the third epoch: {values}")
    memory = [each["memory_bytes"] / 1e6 for each in seen[2:]]
    growth = statistics.linear_regression(range(len(memory)), memory).slope
    if growth >= 0.2 and number >= 20:  # fewer epochs are still filling caches
        failures.append(f"memory grows by {growth:.3f} MB an epoch: {memory}")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE_IMPORT], cwd=ROOT, capture_output=True, text=True
    )
    imported = done.stdout.strip() or done.stderr[-500:]
    if imported != "[]":
        failures.append(f"importing opened sockets: {imported}")
    if found["sockets"]:
        failures.append(f"training, evaluation or figures opened sockets: {found['sockets']}")
    milliseconds, megabytes = _save_milliseconds(folder, scaled(9, share, 3))
    of_epoch = milliseconds / 1000 / (50_000 / IMAGES_PER_S)
    if of_epoch > 0.01:
        failures.append(f"a save takes {of_epoch:.2%} of an epoch")
    return {
        "epochs": number, "after_the_third": seen[2], "at_the_end": seen[-1],
        "memory_growth_mb_an_epoch": round(growth, 4), "save_ms": round(milliseconds, 1),
        "save_mb": round(megabytes, 1), "stated_images_per_s": IMAGES_PER_S,
        "save_share_of_an_epoch": round(of_epoch, 6), "failures": failures,
    }  # fmt: skip
