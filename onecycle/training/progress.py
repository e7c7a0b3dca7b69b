"""What a person sees during a training: a bar, and two lines per epoch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

from onecycle.records import EpochRecord, StepRecord


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error for work of more than a second; gone when the block ends.

    Args:
        description: what is done, in front of the bar.

    Returns:
        A function of (done, total) that moves the bar.
    """
    # Without the numbers, which may be bytes as well as steps.
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with _bar(None, desc=description, delay=1, bar_format=form) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move


def _bar(total: int | None, **options: Any) -> tqdm:
    # Standard error is a red box in a notebook, and would stay in its file.
    in_notebook = type(sys.stdout).__module__.startswith("ipykernel")
    stream = sys.stdout if in_notebook else sys.stderr
    return tqdm(
        total=total,
        file=stream,
        disable=stream is None,  # it was closed
        leave=False,
        ascii=" #",
        mininterval=0.5,
        dynamic_ncols=True,
        **options,
    )


class TrainingLog:
    """A callback of ``fit``: a bar on standard error, and lines on standard output and in ``lines``.

    Args:
        steps_per_epoch: optimizer steps per epoch.
        num_test: images evaluated after each epoch.
        test_name: what these images are called.
        stream: where the lines go; None: standard output.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        num_test: int,
        *,
        test_name: str = "Test images",
        stream: TextIO | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._steps_per_epoch = steps_per_epoch
        self._num_test = num_test
        self._test_name = test_name
        self._stream = stream
        self._bar: tqdm | None = None
        self._last = ""

    def state_dict(self) -> dict[str, Any]:
        """The lines so far, for a run that resumes later."""
        return {"lines": list(self.lines), "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the lines by those of ``state_dict``, and show them if they are new here."""
        before = self.lines
        self.lines, self._last = list(state["lines"]), state["last"]
        if self.lines[: len(before)] != before or not before:
            self.show(*self.lines)

    def show(self, *lines: str) -> None:
        """Show lines that are no part of the log."""
        self.close()
        for line in lines:
            print(line, file=self._stream or sys.stdout, flush=True)

    def write(self, line: str = "") -> None:
        """Write a line, and keep it for the log file."""
        self.lines.append(line)
        self.show(line)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_step(self, epoch: int, step: StepRecord, accuracy: float) -> None:
        """Move the bar; it shows the epoch's accuracy so far, 0..1, in percent."""
        batch = step.step - (epoch - 1) * self._steps_per_epoch
        self._last = (
            f"EPOCH = {epoch} | LR = {step.lr:.6g} | Loss = {step.loss:.2f} | "
            f"Batch = {batch} | Accuracy = {100 * accuracy:.2f}"
        )
        if self._bar is None:
            self._bar = _bar(self._steps_per_epoch)
        self._bar.set_description_str(self._last, refresh=False)
        self._bar.update(batch + 1 - self._bar.n)

    def on_epoch(self, record: EpochRecord) -> None:
        """Write the epoch's lines: its last step, and the evaluation if there was one."""
        without_steps = f"EPOCH = {record.epoch} | Accuracy = {100 * record.train_accuracy:.2f}"
        self.write(f"{self._last or without_steps} | {record.train_seconds:.1f} s")
        if record.test_accuracy is not None:
            correct = round(record.test_accuracy * self._num_test)
            self.write(
                f"{self._test_name}: Average loss: {record.test_loss:.4f}, "
                f"Accuracy: {correct}/{self._num_test} ({100 * record.test_accuracy:.2f}%)"
            )
        self.write()
