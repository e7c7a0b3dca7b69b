"""What a person sees during a training: a bar, and two lines per epoch."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

from onecycle.files import printable
from onecycle.records import EpochRecord, StepRecord
from onecycle.schema import Many, Text, check

LINE_S = 60.0
"""Seconds between two lines where no bar can be drawn."""
FROM_BYTES = 10_000_000
"""A total of bytes; no data set has so many images."""
clock = time.monotonic


class Estimate:
    """How long the rest of some work takes, at the rate of the last half of what is done.

    The first steps, which may compile or fill caches, are left out.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque()
        self._first = 0

    def note(self, done: int) -> None:
        """So much is done by now."""
        if not self._seen or done < self._seen[-1][0]:  # begun, or begun again
            self._seen.clear()
            self._first = done
        self._seen.append((done, clock()))
        while len(self._seen) > 2 and 2 * (self._seen[1][0] - self._first) <= done - self._first:
            self._seen.popleft()

    def seconds_left(self, total: int) -> float | None:
        """None as long as only the first steps are known."""
        if not self._seen or self._seen[0][0] == self._first:
            return None
        (before, start), (done, now) = self._seen[0], self._seen[-1]
        return (total - done) * (now - start) / max(done - before, 1)


@contextlib.contextmanager
def progress_bar(description: str, unit: str = "step") -> Iterator[Callable[[int, int], None]]:
    """A bar for work that may take long; gone when the block ends.

    Args:
        description: what is done, in front of the bar.
        unit: what is counted; a total of 10 million or more is one of bytes.

    Returns:
        A function of (done, total) that moves the bar.
    """
    bar, estimate = _Bar(description), Estimate()

    def move(done: int, total: int) -> None:
        estimate.note(done)
        amount = f"{unit} {done:,}/{total:,}"
        if total >= FROM_BYTES:
            amount = f"{done / 1e6:,.0f}/{total / 1e6:,.0f} MB"
        bar.move(done, total, amount + _left(estimate.seconds_left(total)))

    with contextlib.closing(bar):
        yield move


class Watched:
    """A loader with a bar while its batches are taken.

    Args:
        loader: of batches of images and labels.
        description: see :func:`progress_bar`.
        total: its images.
    """

    def __init__(self, loader: Iterable, description: str, total: int) -> None:
        self._loader, self._description, self._total = loader, description, total

    def __iter__(self) -> Iterator:
        done = 0
        with progress_bar(self._description, "images") as move:
            for batch in self._loader:
                yield batch
                done += len(batch[1])
                move(done, self._total)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _left(seconds: float | None) -> str:
    """The time left in words, in a unit that it is good for."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f", {seconds:.0f} s left"
    if minutes < 90:
        return f", {minutes} min left"
    return f", {minutes // 60} h {minutes % 60:02} min left"


class _Bar:
    """One line that is drawn again and again; where that cannot be, a line now and then."""

    def __init__(self, text: str) -> None:
        # Standard error is a red box in a notebook, and would stay in its file.
        in_notebook = type(sys.stdout).__module__.startswith("ipykernel")
        self._stream = sys.stdout if in_notebook else sys.stderr  # None: it was closed
        self._text, self._said = text, clock()
        is_live = in_notebook or (self._stream is not None and self._stream.isatty())
        self._bar = tqdm(
            file=self._stream,
            disable=not is_live,
            desc=text,
            leave=False,
            ascii=" #",
            mininterval=0.5,
            dynamic_ncols=True,
            unit="",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {unit}",
        )

    def move(self, done: int, total: int, amount: str, text: str = "", now: bool = False) -> None:
        """Show how much is done; ``now``, however short ago the bar was drawn."""
        self._text = text or self._text
        if not self._bar.disable:
            self._bar.total, self._bar.unit = total, amount
            self._bar.set_description_str(self._text, refresh=False)
            self._bar.update(done - self._bar.n)
            if now:
                self._bar.refresh()
        elif self._stream is not None and clock() - self._said >= LINE_S:
            self._said = clock()
            print(f"{self._text}: {amount}", file=self._stream, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


class TrainingLog:
    """A callback of ``fit``: a bar, and lines that also stay in ``lines``.

    Bars go to standard error, in a notebook to its output; lines go to standard output. If standard
    error is no terminal, it gets a line per minute instead.

    Args:
        steps_per_epoch: optimizer steps per epoch.
        num_test: images evaluated after each epoch.
        epochs: of the training, for the time that is left; None: of the epoch alone.
        test_name: what these images are called.
        stream: where the lines go; None: standard output.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        num_test: int,
        *,
        epochs: int | None = None,
        test_name: str = "Test images",
        stream: TextIO | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._steps_per_epoch = steps_per_epoch
        self._num_test = num_test
        self._test_name = test_name
        self._stream = stream
        self._epochs = epochs
        self._estimate = Estimate()
        self._bar: _Bar | None = None
        self._last = ""

    def state_dict(self) -> dict[str, Any]:
        """The lines so far, for a run that resumes later."""
        return {"lines": list(self.lines), "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the lines by those of ``state_dict``, and show them if they are new here."""
        check(state, {"lines": Many(Text()), "last": Text()}, "log")
        before = self.lines
        self.lines, self._last = list(state["lines"]), state["last"]
        if self.lines[: len(before)] != before or not before:
            self.show(*self.lines)

    def show(self, *lines: str) -> None:
        """Show lines that are no part of the log."""
        self.close()
        for line in "\n".join(lines).split("\n") if lines else ():  # a table is one line of the log
            print(printable(line), file=self._stream or sys.stdout, flush=True)

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
        text = f"EPOCH = {epoch} | Loss = {step.loss:.2f} | Accuracy = {100 * accuracy:.2f}"
        if self._bar is None:
            self._bar = _Bar(text)
        steps = self._steps_per_epoch
        self._estimate.note(step.step + 1)
        left = _left(self._estimate.seconds_left(steps * (self._epochs or epoch)))
        evaluates = batch + 1 == steps and self._num_test > 0
        amount = "evaluating" if evaluates else f"step {batch + 1:,}/{steps:,}"
        self._bar.move(batch + 1, steps, amount + left, text, now=evaluates)

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
