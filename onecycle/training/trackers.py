"""Live views: TensorBoard, or any object with ``log(dict, step)``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from matplotlib.figure import Figure

from onecycle.errors import StorageError, UsageError
from onecycle.paths import storage_error
from onecycle.records import EpochRecord, StepRecord

FLUSH_S = 10
"""Seconds at most until TensorBoard can show a value."""


class Tracker(Protocol):
    """Takes the values of a run. A run of wandb and the module trackio are trackers as they are."""

    def log(self, values: dict[str, float], step: int) -> Any:
        """Take values by name; ``step`` is the optimizer steps before this one, never falling."""


class TrackerCallback:
    """A callback of ``fit`` that passes its records to a tracker.

    After a step: ``lr`` and ``loss/step``. After an epoch, at its last step: ``loss/train``,
    ``accuracy/train`` and, after an evaluation, ``loss/test`` and ``accuracy/test``. Losses are in
    nats, accuracies 0..1.

    Args:
        tracker: gets the values.
        steps_per_epoch: optimizer steps per epoch.
    """

    def __init__(self, tracker: Tracker, steps_per_epoch: int) -> None:
        self.tracker = tracker
        self.steps_per_epoch = steps_per_epoch

    def on_step(self, epoch: int, step: StepRecord, accuracy: float) -> None:
        """Log a step."""
        self.tracker.log({"lr": step.lr, "loss/step": step.loss}, step.step)

    def on_epoch(self, record: EpochRecord) -> None:
        """Log an epoch."""
        values = {
            f"{quantity}/{split}": getattr(record, f"{split}_{quantity}")
            for quantity in ("loss", "accuracy")
            for split in ("train", "test")
        }
        known = {name: value for name, value in values.items() if value is not None}
        self.tracker.log(known, record.epoch * self.steps_per_epoch - 1)


class TensorBoardTracker:
    """Values and figures as TensorBoard's event files. Close it at the end, also after an error.

    A run that resumes in the same folder replaces what was logged there from its first step on, so
    that no step is drawn twice.

    Args:
        folder: of the event files; made with the first value.

    Raises:
        UsageError: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "tensorboard is not installed: pip install tensorboard, or train without it"
            ) from error
        self._new_writer = SummaryWriter
        self._folder = str(folder)
        self._writer = None
        self._is_new = True

    def log(self, values: dict[str, float], step: int) -> None:
        """Write values; names with the same beginning before "/" share a group.

        Raises:
            StorageError: the folder cannot be made or written.
        """
        with self._writing():
            writer = self._open(purge_from=step)
            for name, value in values.items():
                writer.add_scalar(name, value, step)

    def log_figures(self, figures: Mapping[str, Figure], step: int) -> None:
        """Write figures by name, as pictures.

        Raises:
            StorageError: the folder cannot be made or written.
        """
        with self._writing():
            writer = self._open(purge_from=None)  # the values of that step stay
            for name, figure in figures.items():
                writer.add_figure(name, figure, step, close=False)

    def close(self) -> None:
        """Write what is left; more can be logged afterwards.

        Raises:
            StorageError: the folder cannot be written.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._writing():
                writer.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            advice = "the run itself does not need them: train without --tensorboard"
            raise StorageError(f"{storage_error(self._folder, error)}; {advice}") from error

    def _open(self, purge_from: int | None):
        if self._writer is None:
            first = purge_from if self._is_new else None
            self._writer = self._new_writer(self._folder, purge_step=first, flush_secs=FLUSH_S)
            self._is_new = False
        return self._writer
