"""What a person sees while a network trains: a bar, and two lines an epoch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm


@contextlib.contextmanager
def progress_bar(
    description: str, stream: TextIO | None = None
) -> Iterator[Callable[[int, int], None]]:
    """A bar to be moved by calls with (done, total); it goes when the block ends."""
    with _bar(None, stream, desc=description, unit_scale=True, delay=1) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move


def _bar(total: int | None, stream: TextIO | None, **options) -> tqdm:
    return tqdm(
        total=total,
        file=stream or sys.stdout,
        leave=False,
        ascii=" #",
        mininterval=0.5,
        dynamic_ncols=True,
        **options,
    )


class TrainingLog:
    """Progress as a bar on the stream, and lines that stay on the stream and in ``lines``.

    Its ``on_step`` and ``on_epoch`` are what the training loop calls.

    Args:
        steps_per_epoch: optimizer steps an epoch.
        num_test: images evaluated after each epoch.
        test_name: what they are called.
        stream: where bar and lines go; None: standard output as it is when something is written.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        num_test: int,
        *,
        test_name: str = "Test set",
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
        """The lines so far, for a run that goes on later."""
        return {"lines": list(self.lines), "last": self._last}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take the lines from ``state_dict`` in place of those that were written since."""
        self.lines, self._last = list(state["lines"]), state["last"]

    def write(self, line: str = "") -> None:
        """A line for the stream and for the log file."""
        self.lines.append(line)
        print(line, file=self._stream or sys.stdout, flush=True)

    def on_step(self, epoch: int, step, accuracy: float) -> None:
        """Move the bar.

        Args:
            epoch: from 1.
            step: a record with ``step`` (over all epochs, from 0), ``lr`` and ``loss``.
            accuracy: 0..1, over the epoch so far.
        """
        batch = step.step - (epoch - 1) * self._steps_per_epoch
        if self._bar is None:
            self._bar = _bar(self._steps_per_epoch, self._stream)
        self._last = (
            f"EPOCH = {epoch} | LR = {step.lr:.6g} | Loss = {step.loss:.2f} | "
            f"Batch = {batch} | Accuracy = {100 * accuracy:.2f}"
        )
        self._bar.set_description_str(self._last, refresh=False)
        self._bar.update(batch + 1 - self._bar.n)

    def close(self) -> None:
        """Take the bar away, so that what is written next has a line of its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_epoch(self, record) -> None:
        """Close the bar and write the epoch's lines.

        Args:
            record: with ``epoch``, ``train_accuracy``, ``train_seconds``, ``test_loss`` and
                ``test_accuracy`` (0..1), the latter two None without test images.
        """
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
