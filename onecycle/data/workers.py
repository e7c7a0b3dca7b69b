"""The processes of a loader: seeded, and named where one dies, hangs or fails."""

from __future__ import annotations

import itertools
import random
import signal
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from onecycle.errors import DataError, WorkerError


def checked(iterator: Iterator, epoch: int, start: int) -> Iterator:
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
        # The workers end now, and not when the last traceback goes. A death that is told of
        # meanwhile, at most one, may break that off.
        try:
            _end_workers(iterator)
        except WorkerError:
            _end_workers(iterator)
        raise


def _end_workers(iterator: Iterator) -> None:
    getattr(iterator, "_shutdown_workers", bool)()


def _next(iterator: Iterator):
    """A batch; None at the end; or what went wrong, without a traceback that keeps the workers."""
    try:
        loaded = next(iterator, None)
    except WorkerError as error:
        return WorkerError(str(error))
    except (EOFError, ConnectionError) as error:  # what it was about to hand over went with it
        return worker_error(f"DataLoader worker exited: {type(error).__name__}")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        return worker_error(str(error))
    return DataError(loaded) if isinstance(loaded, _Failure) else loaded


class _Failure(str):
    """What went wrong with which image; a value, because an exception's text comes out mangled."""


class Reporting(Dataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except Exception as error:  # whatever it is, its reader wants to know the image
            return _Failure(f"image {index} cannot be loaded: {type(error).__name__}: {error}")


def collate(samples: list):
    failures = [sample for sample in samples if isinstance(sample, _Failure)]
    return failures[0] if failures else default_collate(samples)


def worker_error(said: str) -> WorkerError:
    cause = said.splitlines()[0].rstrip(". ")
    return WorkerError(f"{cause}; memory may be short: take fewer workers, or --workers 0")


def name_worker_errors() -> None:
    # When a worker dies, torch raises from a signal handler, wherever the program is at the time.
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
    # Ctrl-C goes to all processes; this one stops when the first one has no more use for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seed_transform(get_worker_info().dataset.dataset, torch.initial_seed() % 2**63)


def seed_transform(dataset: Dataset, seed: int) -> None:
    # One stream for the whole pipeline. set_random_seed would give every transform the same one,
    # so that crop, flip and hole fall together.
    set_random_state = getattr(getattr(dataset, "transform", None), "set_random_state", None)
    if set_random_state is not None:
        set_random_state(np.random.default_rng(seed), random.Random(seed))
    # torch's Subset has a data set in it, its ConcatDataset several.
    inside = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    for number, part in enumerate(inside):
        if isinstance(part, Dataset):
            seed_transform(part, (seed + (number << 32)) % 2**63)
