"""What a training holds, opens and costs."""

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

import matplotlib.pyplot as plt
import numpy as np
import pytest
import small_runs
import torch
from torch import nn

from models import CustomResNet
from onecycle.optim.adam import get_optimizer
from onecycle.records import History
from onecycle.results.evaluation import evaluate_predictions
from onecycle.results.figures import confusion, training
from onecycle.training.checkpoint import LAST
from onecycle.training.compute import Compute
from onecycle.training.loop import fit

IMAGES_PER_S = 128
"""A stated speed of training, to say what share of an epoch of 50,000 images a save takes."""
OFFLINE_IMPORT = """
import importlib, pkgutil, sys
opened = []
sys.addaudithook(lambda name, args: opened.append(name) if name.startswith("socket.") else None)
import onecycle, transformation, visualize
for module in pkgutil.walk_packages(onecycle.__path__, "onecycle."):
    if module.name not in ("onecycle.__main__", "onecycle.training.kernels"):  # needs Triton
        importlib.import_module(module.name)
transformation.get_train_aug_transform((0.5,) * 3, (0.3,) * 3)
print(sorted(set(opened)))
"""


class Watch:
    """After each epoch: an evaluation, figures, and what the process holds then."""

    def __init__(self):
        self.held, self.records, self.rng = [], [], np.random.default_rng(0)

    def on_epoch(self, record):
        self.records.append(record)
        probabilities = self.rng.dirichlet((1, 1), 40)
        evaluation = evaluate_predictions(
            probabilities, self.rng.integers(0, 2, 40), ("one", "other")
        )
        for figure in (
            training.plot_history(History(epochs=self.records[-3:]), source="noise"),
            confusion.plot_confusion_matrix(evaluation, source="noise"),
        ):
            figure.savefig(io.BytesIO(), format="png")
        del figure, evaluation
        self.held.append(held())


def held():
    """Descriptors, child processes, figures, tensors and memory of this process."""
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


def train_watched(epochs, folder, left):
    """A training with evaluation, saves and figures in each epoch; what it holds, in a file."""
    opened, watch = [], Watch()
    sys.addaudithook(lambda name, args: opened.append(name) if name.startswith("socket.") else None)
    parts, loader = small_runs.make(epochs=epochs), small_runs.Batches()
    fit(
        parts["model"], loader, loader.to_evaluate, parts["optimizer"], parts["scheduler"],
        nn.CrossEntropyLoss(), epochs=epochs, compute=Compute(torch.device("cpu"), "bfloat16"),
        checkpoint=small_runs.new(folder / "run", every_s=0.0), callbacks=[watch],
    )  # fmt: skip
    left.write_text(json.dumps({"held": watch.held, "sockets": sorted(set(opened))}))


def cost_of_a_save(folder, times):
    """The median milliseconds of a save of the real network and Adam, and the file's megabytes."""
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


def import_all():
    """What sockets the imports open, as a list in a text, or how they end."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", OFFLINE_IMPORT]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr[-500:]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")
def test_footprint(trials, tmp_path):
    """Twenty epochs in one process, sockets, and what a save costs at the real size."""
    epochs, left = trials.scaled(20, least=6), tmp_path / "left.json"
    assert small_runs.in_child(lambda: train_watched(epochs, tmp_path, left)) == 0
    found = json.loads(left.read_text())
    seen = found["held"]
    for name in ("descriptors", "children", "figures", "tensors"):
        values = [each[name] for each in seen[2:]]
        if len(set(values)) > 1:
            trials.failures.append(f"{name} after the third epoch: {values}")
    if found["sockets"]:
        trials.failures.append(
            f"training, evaluation or figures opened sockets: {found['sockets']}"
        )
    if trials.is_smoke:  # seconds and memory tell nothing beside other tests
        return
    memory = [each["memory_bytes"] / 1e6 for each in seen[2:]]
    growth = statistics.linear_regression(range(len(memory)), memory).slope
    if growth >= 0.2 and epochs >= 20:  # fewer epochs are still filling caches
        trials.failures.append(f"memory grows by {growth:.3f} MB an epoch: {memory}")
    if (imported := import_all()) != "[]":
        trials.failures.append(f"importing opened sockets: {imported}")
    milliseconds, megabytes = cost_of_a_save(tmp_path, trials.scaled(9, least=3))
    of_epoch = milliseconds / 1000 / (50_000 / IMAGES_PER_S)
    if of_epoch > 0.01:
        trials.failures.append(f"a save takes {of_epoch:.2%} of an epoch")
    trials.record(
        epochs=epochs, after_the_third=seen[2], at_the_end=seen[-1],
        memory_growth_mb_an_epoch=round(growth, 4), save_ms=round(milliseconds, 1),
        save_mb=round(megabytes, 1), stated_images_per_s=IMAGES_PER_S,
        save_share_of_an_epoch=round(of_epoch, 6),
    )  # fmt: skip
