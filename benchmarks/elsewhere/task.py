"""The training that all libraries do: images, network, recipe, and the moments at which faults come."""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

EPOCHS, BATCH_SIZE, LR_MAX, SEED, SAVE_STEPS = 5, 64, 0.01, 0, 10
NUM_TEST = 360
STEPS_PER_EPOCH = -(-(1797 - NUM_TEST) // BATCH_SIZE)
STEPS = EPOCHS * STEPS_PER_EPOCH
FIELDS = (
    "disk_operations", "kill_at_disk_operation", "full_from_disk_operation", "passes",
    "steps", "kill_at_pass", "stop_at_pass", "nan_at_step", "term_at_step",
)  # fmt: skip
"""Numbers of a trial, the first three of them for disk.c. A pass is one of the network over a batch, and
a step one in training, both from 1; 0: the fault does not come."""


class Moments:
    """The numbers of ``FIELDS``, in a file that the processes of a trial share."""

    def __init__(self, file: str | os.PathLike) -> None:
        with open(file, "r+b") as stream:
            self.map = mmap.mmap(stream.fileno(), mmap.PAGESIZE)
        self.numbers = np.frombuffer(self.map, np.int64)

    def __getitem__(self, field: str) -> int:
        return int(self.numbers[FIELDS.index(field)])

    def __setitem__(self, field: str, number: int) -> None:
        self.numbers[FIELDS.index(field)] = number

    def begin(self, **faults: int) -> None:
        """For a new process: all counts are 0, and the faults are these."""
        self.numbers[: len(FIELDS)] = 0
        for field, number in faults.items():
            self[field] = number


MOMENTS = Moments(os.environ["FAULT_CONTROL"]) if "FAULT_CONTROL" in os.environ else None


def watch(training: bool) -> float:
    """Called by the network before each pass: does what is planned; 1, or NaN to multiply with."""
    if MOMENTS is None:
        return 1.0
    MOMENTS["passes"] += 1
    MOMENTS["steps"] += training
    for field, count, number in (
        ("kill_at_pass", "passes", signal.SIGKILL),
        ("stop_at_pass", "passes", signal.SIGSTOP),
        ("term_at_step", "steps", signal.SIGTERM),
    ):
        if MOMENTS[field] and MOMENTS[field] == MOMENTS[count]:
            MOMENTS[field] = 0
            os.kill(os.getpid(), number)
    is_spoilt = training and 0 != MOMENTS["nan_at_step"] == MOMENTS["steps"]
    return float("nan") if is_spoilt else 1.0


class Net(nn.Module):
    """A small CNN with batch norm and dropout: (N, channels, H, W) to (N, classes) logits."""

    def __init__(self, classes: int = 10, channels: int = 1, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(16 * width, classes),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images) * watch(self.training)


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images (N, 1, 8, 8) in 0..1 and labels, then the last ones to evaluate on."""
    digits = load_digits()
    images, labels = digits.images[:, None].astype(np.float32) / 16, digits.target
    return images[:-NUM_TEST], labels[:-NUM_TEST], images[-NUM_TEST:], labels[-NUM_TEST:]


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """Training and test images for a ``DataLoader``."""
    parts = [torch.from_numpy(part) for part in arrays()]
    return TensorDataset(*parts[:2]), TensorDataset(*parts[2:])


def one_cycle(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.OneCycleLR:
    """Over all steps."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, LR_MAX, total_steps=STEPS)


def adam_steps(optimizer: torch.optim.Optimizer) -> int:
    """How many steps led to these weights, by the optimizer's own count."""
    return max(int(state["step"]) for state in optimizer.state_dict()["state"].values())


def outcome(weights: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What two trainings are compared by: digest of all weights, steps, whether all is finite."""
    digest, finite = hashlib.sha256(), True
    for name, values in sorted(weights.items()):
        values = np.ascontiguousarray(
            values.detach().numpy() if isinstance(values, torch.Tensor) else values
        )
        digest.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
        finite &= bool(np.isfinite(values).all())
    return {"weights": digest.hexdigest()[:16], "steps": int(steps), "finite": finite}


def newest(paths: Iterable[Path]) -> Path | None:
    """The path that was written last, or None."""
    return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)


def train_on_image_folder(folder: Path, pictures: Path) -> None:
    """A plain epoch over torchvision's ``ImageFolder``, for libraries without a reader of their own."""
    images = DataLoader(ImageFolder(str(pictures), transforms.ToTensor()), 16, shuffle=True)
    net = Net(2, channels=3)
    optimizer = torch.optim.Adam(net.parameters(), LR_MAX)
    for batch, labels in images:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(batch), labels).backward()
        optimizer.step()
