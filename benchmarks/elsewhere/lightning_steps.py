"""Lightning with ``every_n_train_steps`` and torchdata's ``StatefulDataLoader``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.elsewhere import lightning_epochs
from benchmarks.elsewhere.task import SAVE_STEPS

PACKAGES, CHECKPOINTS = ("lightning", "torchdata"), "last*.ckpt"
TITLE = f"Lightning, saves every {SAVE_STEPS} steps, StatefulDataLoader"
PROMISE = "resumes inside an epoch where the loader has state_dict; not the random states"


def train(folder: Path, width: int = 8) -> dict[str, Any]:
    return lightning_epochs.train(
        folder, width, StatefulDataLoader, every_n_train_steps=SAVE_STEPS
    )  # fmt: skip
