"""SIGINT (Ctrl-C) and SIGTERM as a wish to stop, which a loop asks for between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Signals:
    """What came: ``received`` is the number of the first signal, or None."""

    def __init__(self) -> None:
        self.received: int | None = None

    def stop(self) -> bool:
        """Whether a signal asked the run to end."""
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
    """Inside the block the first SIGINT or SIGTERM is only noted; a second one ends at once.

    A second SIGINT raises KeyboardInterrupt, a second SIGTERM ends the process. Signals that are
    ignored (``nohup``) stay so. The handlers from before come back with the end of the block.
    Python runs handlers in the main thread only: in another one nothing is caught.
    """
    signals = Signals()
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):  # None: not Python's, cannot come back
                    before[number] = handler
                    signal.signal(number, signals._on_signal)
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
