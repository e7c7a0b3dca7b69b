"""Ctrl-C, SIGTERM and their like as a request to stop, which a loop checks between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")
    if hasattr(signal, name)  # Windows has the first two
)
"""A closed terminal sends SIGHUP; batch systems warn with SIGUSR1 or SIGXCPU."""


class Signals:
    """The signals so far: ``received`` is the number of the first one, or None."""

    def __init__(self) -> None:
        self.received: int | None = None

    def stop(self) -> bool:
        """Whether there was a signal."""
        return self.received is not None

    def _on_signal(self, number: int, frame) -> None:
        if self.received is None:
            self.received = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextlib.contextmanager
def catch_signals() -> Iterator[Signals]:
    """Inside the block, the first signal of ``STOPPING`` is only recorded; a second one ends at once.

    A second SIGINT raises KeyboardInterrupt, another one ends the process. Ignored signals
    (``nohup``) stay ignored. The previous handlers return at the end of the block. Python runs
    handlers in the main thread only: in another thread, nothing is caught.
    """
    signals = Signals()
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):  # None: not Python's, cannot be restored
                    before[number] = handler
                    signal.signal(number, signals._on_signal)
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
