"""What a person sees while a network trains: a bar, and two lines per epoch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

from onecycle.records import EpochRecord, StepRecord


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error (a notebook's output), moved by calls with (done, total); it goes when the block ends."""
    with _bar(None, desc=description, delay=1) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move


def _bar(total: int | None, **options) -> tqdm:
    # Standard error is a red box in a notebook, and would stay in its file.
    in_notebook = type(sys.stdout).__module__.startswith("ipykernel")
    return tqdm(
        total=total, file=sys.stdout if in_notebook else sys.stderr, leave=False, ascii=" #", mininterval=0.5,
        dynamic_ncols=True, **options,
    )  # fmt: skip


class TrainingLog:
    """A callback of the training loop: a bar, and lines that stay in ``lines``.

    Args:
        steps_per_epoch: optimizer steps per epoch.
        num_test: images evaluated after each epoch.
        test_name: what they are called.
        stream: where the lines go; None: standard output as it is when a line is written.
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

    def state_dict(self) -> dict[str, object]:
        """The lines so far, for a run that resumes later."""
        return {"lines": list(self.lines), "last": self._last}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take the lines of ``state_dict`` in place of those written since, and show them."""
        before = self.lines
        self.lines, self._last = list(state["lines"]), state["last"]
        if self.lines[: len(before)] != before:  # else they are on the stream already
            self.show(*self.lines)

    def show(self, *lines: str) -> None:
        """Lines for the stream, which are no part of the log."""
        for line in lines:
            print(line, file=self._stream or sys.stdout, flush=True)

    def write(self, line: str = "") -> None:
        """A line for the stream and for the log file."""
        self.lines.append(line)
        self.show(line)

    def on_step(self, epoch: int, step: StepRecord, accuracy: float) -> None:
        """Move the bar; ``accuracy`` is that of the epoch so far, 0..1."""
        batch = step.step - (epoch - 1) * self._steps_per_epoch
        if self._bar is None:
            self._bar = _bar(self._steps_per_epoch)
        self._last = (
            f"EPOCH = {epoch} | LR = {step.lr:.6g} | Loss = {step.loss:.2f} | "
            f"Batch = {batch} | Accuracy = {100 * accuracy:.2f}"
        )
        self._bar.set_description_str(self._last, refresh=False)
        self._bar.update(batch + 1 - self._bar.n)

    def on_epoch(self, record: EpochRecord) -> None:
        """Close the bar and write the lines of the epoch."""
        self.close()
        line = (
            self._last or f"EPOCH = {record.epoch} | Accuracy = {100 * record.train_accuracy:.2f}"
        )
        self.write(f"{line} | {record.train_seconds:.1f} s")
        if record.test_accuracy is not None:
            correct = round(record.test_accuracy * self._num_test)
            self.write(
                f"{self._test_name}: Average loss: {record.test_loss:.4f}, "
                f"Accuracy: {correct}/{self._num_test} ({100 * record.test_accuracy:.2f}%)"
            )
        self.write()

    def close(self) -> None:
        """Take the bar away, so that the next line stands alone."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
