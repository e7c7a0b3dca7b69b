"""This repository, by its command. Saves after every step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.elsewhere.task import BATCH_SIZE, EPOCHS, LR_MAX, Net, outcome
from onecycle.commands import main
from onecycle.results.weights import load_weights

PACKAGES, CHECKPOINTS = ("onecycle",), "last.ckpt"
TITLE = "ours"
PROMISE = "bit-identical on a CPU after a kill at any moment (docs/resuming.md)"


def small_net(classes: int) -> Net:
    return Net(classes, channels=3)


def wide_net(classes: int) -> Net:
    return Net(classes, channels=3, width=16)


def command(folder: Path, *options: str) -> None:
    """Ends as the command does where its exit code is not 0."""
    code = main([
        "train", "--out", str(folder), "--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE),
        "--lr-max", str(LR_MAX), "--lr-min", str(LR_MAX / 25), "--device", "cpu", "--precision", "float32",
        "--save-minutes", "0", *options,
    ])  # fmt: skip
    if code:
        raise SystemExit(code)


def train(folder: Path, width: int = 8) -> dict[str, Any]:
    name = "small_net" if width == 8 else "wide_net"
    command(folder, "--dataset", "digits", "--model", f"{__name__}:{name}")
    weights = load_weights(folder / "model.safetensors").state_dict
    steps = len((folder / "steps.csv").read_text("utf-8").splitlines()) - 1
    return outcome(weights, steps)


def train_pictures(folder: Path, pictures: Path) -> None:
    """Pictures in a folder per class."""
    cache = str(folder.with_name(f"{folder.name}-cache"))
    os.makedirs(cache, exist_ok=True)
    command(folder, "--data-dir", str(pictures), "--cache-dir", cache, "--init", "none",
            "--model", f"{__name__}:small_net")  # fmt: skip
