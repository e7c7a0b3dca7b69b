"""What all trials share."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SEED = 0


def say(line: str) -> None:
    print(line, flush=True)


def scaled(full: int, share: float, least: int = 1) -> int:
    return max(least, round(full * share))


class Progress:
    """A line at each quarter of the way."""

    def __init__(self, total: int) -> None:
        self.total, self.next = total, 1

    def at(self, done: int) -> None:
        if 4 * done >= self.next * self.total:
            self.next = 4 * done // self.total + 1
            say(f"  {min(done, self.total):,} of {self.total:,}")
