"""What the steps of a training measure: collected on the device, read a few times an epoch."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from onecycle.errors import DivergedError
from onecycle.records import EpochRecord, History, StepRecord
from onecycle.training.group import Group

READ_EVERY = 49
"""Steps on a GPU between two readings of the losses: each waits for all work on the GPU. The 98 of
an epoch are read twice."""


SKIPS_TOLERATED = 25
"""Steps in a row that float16's loss scaling may skip; each halves the scale."""




class Meter:
    """Collects what the steps measure on the device, and reads it a few times an epoch.

    Args:
        history: where it goes.
        device: where the measurements are.
        group: adds the measurements of its processes up.
        float16: gradients may overflow, up to a number of times in a row.
    """

    def __init__(self, history: History, device: torch.device, group: Group, *, float16: bool) -> None:
        self.history = history
        self.group = group
        self.float16 = float16
        self.skipped_in_a_row = 0
        self.values = torch.zeros(READ_EVERY if device.type == "cuda" else 1, 3, device=device)
        self.pending: list[tuple[float, int]] = []

    def start(self) -> None:
        """Start the clock of an epoch, or of the rest of one."""
        self.since = time.perf_counter()

    def note(self, lr: float, size: int, share: float, measured: Tensor, norm: Tensor) -> None:
        """Keep what a step measured, on the device.

        Args:
            lr: the rate that it used.
            size: images in the batch, over all processes.
            share: of these images, how much this process has, 0..1.
            measured: (2,) mean loss and number of right answers, of this process.
            norm: of the gradient.
        """
        row = self.values[len(self.pending)]
        row[0], row[1], row[2] = measured[0] * share, measured[1], norm / self.group.world_size
        self.pending.append((lr, size))

    @property
    def is_full(self) -> bool:
        """It is time to read."""
        return len(self.pending) == len(self.values)

    @property
    def accuracy(self) -> float:
        """Of the epoch so far, 0..1."""
        return self.history.running["correct"] / self.history.running["images"]

    def read(self, epoch: int, stop: bool) -> bool:
        """Move what was collected into the history; whether a process of the group is to stop."""
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
        """Close the epoch under way; its record goes into the history.

        Args:
            test_loss: mean over the test images, in nats; None where none were given.
            test_accuracy: 0..1, or None.
            test_seconds: that the evaluation took.

        Raises:
            DivergedError: the test loss is not finite: the very last step can break what was
                finite before.
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
    """The error that says where ``what`` was no longer finite, and what to do."""
    last = ", ".join(f"{record.loss:.3g}" for record in before[-3:]) or "none"
    return DivergedError(
        f"{what} is {value} in epoch {epoch}, step {step.step}, at rate {step.lr:.3g}; "
        f"the losses before: {last}; lower lr_max"
    )


def not_saved(history: History, error: DivergedError) -> DivergedError:
    """The error that says where a state was refused by the checkpoint, and what to do."""
    epoch = len(history.epochs) + (history.running["images"] > 0)
    return diverged(epoch, history.steps[-1], "the state", f"not finite ({error})", history.steps)
