"""What the training steps measure: collected on the device, read a few times per epoch."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from onecycle.errors import DivergedError
from onecycle.records import EpochRecord, History, StepRecord
from onecycle.training.compute import Compute

READ_EVERY = 49
"""Steps on a GPU between two readings of the losses, each of which waits for all work on the GPU.
An epoch of 98 steps is read twice."""
SKIPS_TOLERATED = 25
"""Steps in a row that float16's loss scaling may skip; each halves the scale."""


class Meter:
    """Collects what the steps measure on the device, and reads it a few times per epoch.

    Args:
        history: gets a record of each step and epoch.
        compute: the device; the group whose measurements are added up; in float16 gradients may
            overflow, a limited number of times in a row.
    """

    def __init__(self, history: History, compute: Compute) -> None:
        self.history = history
        self.group = compute.group
        self.float16 = compute.precision == "float16"
        self.skipped_in_a_row = 0
        rows = READ_EVERY if compute.device.type == "cuda" else 1
        self.values = torch.zeros(rows, 3, device=compute.device)
        self.pending: list[tuple[float, int]] = []

    def start(self) -> None:
        """Start the clock of an epoch, or of the rest of an epoch."""
        self.since = time.perf_counter()

    def note(self, lr: float, size: int, share: float, measured: Tensor, norm: Tensor) -> None:
        """Keep what a step measured, on the device.

        Args:
            lr: the learning rate that it used.
            size: images in the batch, over all processes.
            share: this process's share of these images, 0..1.
            measured: (2,) mean cross-entropy and number of correct predictions, of this process.
            norm: of the gradient.
        """
        row = self.values[len(self.pending)]
        row[0], row[1], row[2] = measured[0] * share, measured[1], norm / self.group.world_size
        self.pending.append((lr, size))

    @property
    def is_full(self) -> bool:
        """Whether it is time to read."""
        return len(self.pending) == len(self.values)

    @property
    def accuracy(self) -> float:
        """Training accuracy of the epoch so far, 0..1."""
        return self.history.running["correct"] / self.history.running["images"]

    def read(self, epoch: int, stop: bool) -> bool:
        """Move what was collected into the history.

        Args:
            epoch: from 1.
            stop: whether this process wants to stop.

        Returns:
            Whether a process of the group wants to stop.

        Raises:
            DivergedError: a loss or a gradient is not finite.
        """
        rows = self.values[: len(self.pending)].flatten()
        total = self.group.sum(torch.cat([rows, rows.new_full((1,), float(stop))])).tolist()
        running = self.history.running
        for (lr, size), loss, correct, norm in zip(
            self.pending, total[0:-1:3], total[1:-1:3], total[2:-1:3]
        ):
            step = StepRecord(len(self.history.steps), lr, loss)
            skipped = self.float16 and not math.isfinite(norm)
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
            self.history.skipped_steps += skipped
            if not math.isfinite(loss):
                raise diverged(epoch, step, "the loss", loss, self.history.steps)
            if not (math.isfinite(norm) or skipped) or self.skipped_in_a_row > SKIPS_TOLERATED:
                raise diverged(epoch, step, "the gradient's norm", norm, self.history.steps)
            self.history.steps.append(step)
            running["images"] += size
            running["correct"] += int(correct)
            running["loss"] += loss * size
        self.pending.clear()
        now = time.perf_counter()
        running["seconds"] += now - self.since
        self.since = now
        return total[-1] > 0

    def end_epoch(
        self, test_loss: float | None, test_accuracy: float | None, test_seconds: float
    ) -> EpochRecord:
        """Close the current epoch; its record goes into the history.

        Args:
            test_loss: mean over the test images, in nats; None without test images.
            test_accuracy: 0..1, or None.
            test_seconds: duration of the evaluation.

        Raises:
            DivergedError: the test loss is not finite: the weights can diverge in the very last
                step, after its loss.
        """
        history, running, step = self.history, self.history.running, self.history.steps[-1]
        epoch = len(history.epochs) + 1
        if test_loss is not None and not math.isfinite(test_loss):
            raise diverged(epoch, step, "the test loss", test_loss, history.steps)
        record = EpochRecord(
            epoch=epoch,
            lr=step.lr,
            train_loss=running["loss"] / running["images"],
            train_accuracy=running["correct"] / running["images"],
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            train_seconds=running["seconds"],
            test_seconds=test_seconds,
        )
        history.epochs.append(record)
        history.running = History().running
        return record


def diverged(epoch, step: StepRecord, what: str, value: float, before: list) -> DivergedError:
    """The error that says where ``what`` stopped being finite, and what to do."""
    last = ", ".join(f"{record.loss:.3g}" for record in before[-3:]) or "none"
    return DivergedError(
        f"{what} is {value} in epoch {epoch}, step {step.step}, at rate {step.lr:.3g}; "
        f"the losses before: {last}; lower lr_max"
    )


def not_saved(history: History, error: DivergedError) -> DivergedError:
    """The error that says where the checkpoint refused a state, and what to do."""
    epoch = len(history.epochs) + (history.running["images"] > 0)
    return diverged(epoch, history.steps[-1], "the state", f"not finite ({error})", history.steps)
