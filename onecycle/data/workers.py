"""Threads that read ahead, and worker processes: their seeds, clear errors if one dies, hangs or fails."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from onecycle.errors import DataError, UsageError, WorkerError

AHEAD = 4
"""Batches that are read before they are asked for, each by a thread of its own."""


def read_ahead(fetch: Callable[[Tensor], Tensor], shares: Iterator[Tensor]) -> Iterator[Tensor]:
    """``fetch`` of each share, in their order, by threads that are up to ``AHEAD`` shares ahead."""
    with ThreadPoolExecutor(AHEAD) as pool:
        running = deque(pool.submit(fetch, share) for share in itertools.islice(shares, AHEAD))
        try:
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(fetch, share) for share in itertools.islice(shares, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def checked_batches(iterator: Iterator, epoch: int, start: int) -> Iterator:
    """The batches from ``start`` on; errors name the epoch and the batch and end the workers."""
    try:
        for batch in itertools.count():
            loaded = _next(iterator)
            if loaded is None:
                return
            if isinstance(loaded, Exception):
                raise type(loaded)(f"epoch {epoch}, batch {batch}: {loaded}")
            if batch >= start:
                yield loaded
    except (DataError, WorkerError):
        # End the workers now, not when the last traceback is freed. The report of a death, at
        # most one, may interrupt that.
        try:
            _end_workers(iterator)
        except WorkerError:
            _end_workers(iterator)
        raise


def _end_workers(iterator: Iterator) -> None:
    getattr(iterator, "_shutdown_workers", bool)()


def _next(iterator: Iterator):
    """A batch; None at the end; or an exception, without a traceback that keeps workers alive."""
    try:
        loaded = next(iterator, None)
    except WorkerError as error:
        return WorkerError(str(error))
    except (EOFError, ConnectionError) as error:  # the worker died while sending a batch
        return worker_error(f"DataLoader worker exited: {type(error).__name__}")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        return worker_error(str(error))
    return DataError(loaded) if isinstance(loaded, _Failure) else loaded


class _Failure(str):
    """Which image failed and why; returned, because torch rewrites the text of exceptions."""


class ReportingDataset(Dataset):
    """A data set that returns a failure instead of raising, with the index of the image."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except Exception as error:  # of any type: the user needs to know which image it was
            return _Failure(f"image {index} cannot be loaded: {type(error).__name__}: {error}")


def collate(samples: list):
    """A batch, or the first failure in it."""
    failures = [sample for sample in samples if isinstance(sample, _Failure)]
    return failures[0] if failures else default_collate(samples)


def check_sendable(dataset: Dataset) -> None:
    """Refuse a data set of a notebook, whose classes a process that starts anew does not find.

    Args:
        dataset: its class and its transform's, and those of data sets inside it, are looked at.

    Raises:
        UsageError: one is defined in a notebook or at a prompt.
    """
    if os.path.isfile(getattr(sys.modules["__main__"], "__file__", "")):
        return
    parts = [dataset, *parts_of(dataset)]
    for part in [*parts, *(getattr(part, "transform", None) for part in parts)]:
        named = part if hasattr(part, "__name__") else type(part)
        if named.__module__ == "__main__":
            raise unsendable(f"{named.__name__} is defined in a notebook or at a prompt")


def unsendable(reason: str) -> UsageError:
    """Why a data set cannot go to other processes, with the way out."""
    reason = " ".join(reason.split())
    return UsageError(
        f"the data set cannot be sent to the loader's processes ({reason}); put its class and "
        "its functions into a .py file, or use no workers (--workers 0, num_workers=0)"
    )


def worker_error(message: str) -> WorkerError:
    """torch's message about a worker, in one line and with advice."""
    cause = message.splitlines()[0].rstrip(". ")
    return WorkerError(
        f"{cause}; memory may be short: use fewer workers, or none (--workers 0, num_workers=0)"
    )


def name_worker_errors() -> None:
    """Make torch's report of a dead worker a WorkerError, wherever the program is at the time."""
    # torch raises it from a signal handler.
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if not callable(handler) or getattr(handler, "names_worker_errors", False):
        return

    def named(signum, frame) -> None:
        try:
            handler(signum, frame)
        except RuntimeError as error:
            raise worker_error(str(error)) from None

    named.names_worker_errors = True
    signal.signal(signal.SIGCHLD, named)


def seed_worker(worker: int) -> None:
    """Prepare a new worker process: its transform's seed, and no reaction to Ctrl-C."""
    # Ctrl-C reaches all processes; the main process saves, and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seed_transform(get_worker_info().dataset.dataset, torch.initial_seed() % 2**63)


def seed_transform(dataset: Dataset, seed: int) -> None:
    """Seed the albumentations pipeline of a data set, and of the data sets inside it."""
    # One stream for the whole pipeline. set_random_seed would give each transform the same
    # stream, so that crop, flip and hole would be correlated.
    set_random_state = getattr(getattr(dataset, "transform", None), "set_random_state", None)
    if set_random_state is not None:
        set_random_state(np.random.default_rng(seed), random.Random(seed))
    for number, part in enumerate(_inside(dataset)):
        if isinstance(part, Dataset):
            seed_transform(part, (seed + (number << 32)) % 2**63)


def parts_of(dataset: Dataset) -> Iterator[Dataset]:
    """The data sets inside a data set, and inside those."""
    for part in _inside(dataset):
        if isinstance(part, Dataset):
            yield part
            yield from parts_of(part)


def _inside(dataset: Dataset) -> Sequence[Dataset | None]:
    # torch's Subset holds one data set, ConcatDataset several.
    return getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
