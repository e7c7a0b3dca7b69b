"""The typed errors of a run: one parent, an exit code each, one line that tells the way out."""

from __future__ import annotations

from typing import Any


class RunError(Exception):
    """Parent of every error that the library raises for what a user can mend.

    ``exit_code`` is what the command line ends with.
    """

    exit_code = 1


class UsageError(RunError, ValueError):
    """An option or argument is out of its range, or does not go with another."""

    exit_code = 2


class RangeTestError(UsageError):
    """A range test's curve says nothing about the learning rate; ``finding`` has the curve."""

    def __init__(self, message: str, finding: Any) -> None:
        super().__init__(message)
        self.finding = finding


class DataError(RunError, RuntimeError):
    """The images are missing, damaged or not what they should be."""

    exit_code = 3


class CheckpointError(RunError, RuntimeError):
    """A checkpoint or weights file is damaged, missing, foreign, or does not fit."""

    exit_code = 4


class DivergedError(RunError, RuntimeError):
    """The loss is no longer a finite number."""

    exit_code = 5


class StorageError(RunError, OSError):
    """A folder or file cannot be written."""

    exit_code = 6


class WorkerError(RunError, RuntimeError):
    """A process that loads images died or hangs."""

    exit_code = 7
