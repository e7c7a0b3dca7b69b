"""What a training measures: records of steps, epochs and predictions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch in plain numbers. Losses are cross-entropies without label smoothing."""

    epoch: int
    """From 1."""
    lr: float
    """The learning rate of the epoch's last step."""
    train_loss: float
    """Mean over the images as they were trained on, in nats."""
    train_accuracy: float
    """0..1, over the images as they were trained on; a mixed image has the label with the larger
    share, and one with probabilities as its label the most probable class."""
    test_loss: float | None
    """Mean over the test images, in nats; None without test images."""
    test_accuracy: float | None
    """0..1; None without test images."""
    train_seconds: float
    test_seconds: float


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step: its number from 0, its learning rate, the batch's mean cross-entropy."""

    step: int
    lr: float
    loss: float


@dataclass(slots=True)
class History:
    """Everything that a training has measured, and so how far it is."""

    epochs: list[EpochRecord] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    running: dict[str, float] = field(
        default_factory=lambda: {"images": 0, "correct": 0, "loss": 0.0, "seconds": 0.0}
    )
    """Sums over the current epoch."""
    skipped_steps: int = 0
    """Steps that float16's loss scaling skipped because a gradient overflowed."""

    @property
    def best(self) -> EpochRecord:
        """The epoch with the highest test accuracy, the first of several."""
        return max(self.epochs, key=lambda record: record.test_accuracy)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "epochs": [dataclasses.asdict(record) for record in self.epochs],
            "lrs": [record.lr for record in self.steps],
            "losses": [record.loss for record in self.steps],
            "running": dict(self.running),
            "skipped_steps": self.skipped_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace everything by what ``state_dict`` gave."""
        self.epochs = [EpochRecord(**record) for record in state["epochs"]]
        pairs = enumerate(zip(state["lrs"], state["losses"], strict=True))
        self.steps = [StepRecord(step, lr, loss) for step, (lr, loss) in pairs]
        self.running = dict(state["running"])
        self.skipped_steps = state["skipped_steps"]


@dataclass(frozen=True, slots=True)
class Predictions:
    """A network's predictions of N images."""

    probabilities: np.ndarray
    """(N, K) float32, rows sum to 1."""
    labels: np.ndarray
    """(N,) int64 true classes."""
    mirrored: np.ndarray | None = None
    """(N, K) float32 probabilities from the mean of the log-probabilities of each image and its
    mirror image (flip TTA); None without mirror images."""

    @property
    def predicted(self) -> np.ndarray:
        """(N,) int64 most probable classes."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is the true one, 0..1."""
        return float((self.predicted == self.labels).mean())

    @property
    def mirrored_accuracy(self) -> float | None:
        """Accuracy of the predictions with mirror images, 0..1; None without mirror images."""
        if self.mirrored is None:
            return None
        return float((self.mirrored.argmax(axis=1) == self.labels).mean())
