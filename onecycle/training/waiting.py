"""A process that waits for others: it says so, and a signal ends it although it waits in C++."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

from onecycle.errors import WorkerError
from onecycle.training.signals import STOPPING

SAID_AFTER_S = 30.0
"""How long a process waits before it says so."""
GRACE_S = 30.0
"""How long after a signal a process may go on with one wait: the others may still come."""
SECOND_GRACE_S = 1.0


class Watch:
    """A thread that looks after a process that may wait for others for long.

    The handlers of Python run between two of its operations only, and a wait for another process is
    one. The thread ends the process instead, with the exit code of the signal.

    Args:
        say: told in one line that the process waits.
        timeout_s: after which the wait is given up, for that line.

    Attributes:
        last_words: called with exit code and reason before the process is ended.
    """

    def __init__(self, say: Callable[[str], None], timeout_s: float) -> None:
        self.last_words: list[Callable[[int, str], None]] = []
        self._say, self._timeout_s = say, timeout_s
        self._wait: tuple[float, str] | None = None
        self._said: float | None = None

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """The block waits for what is named."""
        before, self._wait = self._wait, (time.monotonic(), what)
        try:
            yield
        finally:
            self._wait = before

    def note(self, what: str) -> None:
        """The present wait is for this now."""
        if self._wait is not None:
            self._wait = (self._wait[0], what)

    def tell(self) -> None:
        """Say it once if the process has waited for long; end it if it did for much too long."""
        wait = self._wait
        waited = 0.0 if wait is None else time.monotonic() - wait[0]
        if waited > self._timeout_s + GRACE_S:  # torch has its own end, but not everywhere
            minutes = f"{self._timeout_s / 60:.4g} min (--timeout)"
            self._end(
                WorkerError.exit_code, f"no sign of the other processes ({wait[1]}) for {minutes}"
            )
        if wait is None or wait[0] == self._said or waited < SAID_AFTER_S:
            return
        self._said = wait[0]
        self._say(
            f"waiting for the other processes ({wait[1]}) for {SAID_AFTER_S:.0f} s; "
            f"it ends after {self._timeout_s / 60:.4g} min (--timeout)"
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The thread runs inside the block; signals are watched only from the main thread."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        is_main = threading.current_thread() is threading.main_thread()
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False) if is_main else -1
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(read, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            if is_main:
                signal.set_wakeup_fd(before)
            thread.join()
            os.close(read)
            os.close(write)

    def _watch(self, read: int, ended: threading.Event) -> None:
        seen: list[int] = []
        deadline, wait = None, None
        while not ended.is_set():
            if select.select([read], [], [], 0.2)[0]:
                got = [number for number in os.read(read, 64) if number in STOPPING]
                if not got:  # such as a loader's worker that has ended
                    continue
                seen += got
                grace = GRACE_S if len(seen) == 1 else SECOND_GRACE_S
                deadline, wait = time.monotonic() + grace, self._wait
            self.tell()
            if deadline is None or time.monotonic() < deadline:
                continue
            if self._wait is None or self._wait is not wait:  # it goes on, and notices the signal
                deadline, wait = time.monotonic() + grace, self._wait
                continue
            name = signal.Signals(seen[-1]).name
            self._end(128 + seen[-1], f"ended by {name} while it waited for the other processes")

    def _end(self, code: int, reason: str) -> None:
        for speak in self.last_words:
            speak(code, reason)
        self._say(reason)
        os._exit(code)
