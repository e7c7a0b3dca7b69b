"""Loaders whose order and augmentation follow from (seed, epoch): resident or with workers.

Both have one protocol: ``set_epoch(epoch, start=0)`` chooses what the next iteration yields and
how many batches of it are left out, each iteration goes on to the next epoch, ``len`` counts the
batches of a whole one, and ``global_batch(i)`` the images in batch i over all processes.
"""

from __future__ import annotations

import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from errors import DataError, UsageError, WorkerError


@dataclass
class EpochBatches:
    """Which images are in which batch of which epoch, and which of them are this process's.

    Every global batch is dealt out to the processes in turn, so that their shares differ by one
    image at most and together are the batch.

    Args:
        count: images in all.
        batch_size: images a batch over all processes; the last one of an epoch is smaller.
        train: shuffled, and without a last batch that leaves a process fewer than two images, on
            which BN cannot train; otherwise all images in their order, and a process goes without
            a batch in which it has no share.
        seed: of the order.
        rank: this process, 0..world_size-1.
        world_size: how many processes there are.

    Raises:
        UsageError: a number is out of its range, or a process would have nothing to train on.
    """

    count: int
    batch_size: int
    train: bool
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    epoch: int = field(default=0, init=False)
    start: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        least = 2 * self.world_size if self.train else 1
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank is {self.rank}; it must be 0..{self.world_size - 1}")
        if self.train and self.count < least:
            raise UsageError(f"{self.count} training images; BN needs {least} or more")
        if self.batch_size < least:
            raise UsageError(f"batch_size is {self.batch_size}; it must be {least} or more")
        if self.train and self.batch_size > self.count:
            raise UsageError(
                f"batch_size is {self.batch_size}, more than the {self.count} training images"
            )
        self.num_global = self.count // self.batch_size + (self.count % self.batch_size >= least)

    def global_batch(self, index: int) -> int:
        """Images in batch ``index`` of an epoch, over all processes."""
        return min(self.batch_size, self.count - index * self.batch_size)

    def __len__(self) -> int:
        """Batches of a whole epoch in which this process has a share."""
        return sum(self.global_batch(i) > self.rank for i in range(self.num_global))

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the number of its batches that are left out."""
        if not 0 <= start <= len(self):
            raise UsageError(f"start is {start}; it must be from 0 to the {len(self)} batches")
        self.epoch, self.start = epoch, start

    def order(self) -> Tensor:
        """(count,) int64 image indices of the chosen epoch, over all processes."""
        if not self.train:
            return torch.arange(self.count)
        (state,) = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state))
        return torch.randperm(self.count, generator=generator)

    def shares(self, order: Tensor) -> Iterator[Tensor]:
        """This process's part of each batch of ``order``, from the first one."""
        for batch in order.split(self.batch_size)[: len(self)]:
            yield batch[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[list[int]]:
        return iter([share.tolist() for share in self.shares(self.order())])


class _Epochs:
    """The protocol of both loaders but iteration; they have ``batches``."""

    batches: EpochBatches

    def global_batch(self, index: int) -> int:
        """Images in batch ``index`` of an epoch, over all processes."""
        return self.batches.global_batch(index)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that the next iteration yields, without its first ``start`` batches."""
        self.batches.set_epoch(epoch, start)

    def indices(self) -> Tensor:
        """(M,) int64 indices of the images that the next iteration yields, in its order."""
        shares = list(self.batches.shares(self.batches.order()))[self.batches.start :]
        return torch.cat(shares) if shares else torch.empty(0, dtype=torch.int64)


class ResidentLoader(_Epochs):
    """Batches of images that live on the device, where order, augmentation and labels are made.

    Args:
        transform: ``transform(indices, epoch)``: (B,) int64 image indices on the device and the
            epoch's number to the images; :mod:`transformation` makes such.
        labels: (N,) class indices.
        batch_size: images a batch over all processes, see :class:`EpochBatches`.
        device: where the images live.
        options: ``train``, ``seed``, ``rank`` and ``world_size`` of :class:`EpochBatches`.

    Raises:
        UsageError: see :class:`EpochBatches`.
    """

    def __init__(
        self,
        transform: Callable[[Tensor, int], Tensor],
        labels: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        device: torch.device,
        **options: int,
    ) -> None:
        self.batches = EpochBatches(len(labels), batch_size, **options)
        self.transform = transform
        self.device = device
        self.labels = torch.as_tensor(labels, dtype=torch.int64).to(device)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, start = self.batches.epoch, self.batches.start
        order = self.batches.order().to(self.device)  # the one copy of an epoch
        self.batches.set_epoch(epoch + 1)
        for batch, share in enumerate(self.batches.shares(order)):
            if batch >= start:
                yield self.transform(share, epoch), self.labels[share]


class SeededLoader(_Epochs, DataLoader):
    """A DataLoader whose order and augmentation follow from (seed, epoch) alone.

    No two workers or processes share their random numbers, and no epoch repeats those of another.
    With another number of workers the augmentation differs. A batch that is left out is drawn
    and thrown away, so that the others are those of an unbroken epoch.

    Args:
        dataset: images; a ``transform`` with ``set_random_state`` is seeded at every epoch, that of
            a data set within this one (torch's ``Subset`` or ``ConcatDataset``) too.
        batches: which images are in which batch.
        options: whatever else a DataLoader takes, but ``persistent_workers``: a worker that stays
            would not be seeded anew.

    Raises:
        DataError: while iterating, the data set raised: which image, and what.
        WorkerError: while iterating, a worker died, or gave nothing within ``timeout`` seconds.
    """

    def __init__(self, dataset: Dataset, batches: EpochBatches, **options) -> None:
        self.batches = batches
        super().__init__(
            _Reporting(dataset),
            batch_sampler=batches,
            generator=torch.Generator(),
            worker_init_fn=_seed_worker,
            collate_fn=_collate,
            **options,
        )

    def __iter__(self) -> Iterator:
        epoch, start = self.batches.epoch, self.batches.start
        entropy = [self.batches.seed, epoch, self.batches.rank]
        state = np.random.SeedSequence(entropy).generate_state(2)
        self.generator.manual_seed(int(state[0]))
        _seed_transform(self.dataset.dataset, int(state[1]))
        try:
            iterator = super().__iter__()
        except RuntimeError as error:  # one has died already
            raise _worker_error(str(error)) if "DataLoader" in str(error) else error from None
        if self.num_workers:
            _name_worker_errors()
        self.batches.set_epoch(epoch + 1)
        return _checked(iterator, epoch, start)


def _checked(iterator: Iterator, epoch: int, start: int) -> Iterator:
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
        return _worker_error(f"DataLoader worker exited: {type(error).__name__}")
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        return _worker_error(str(error))
    return DataError(loaded) if isinstance(loaded, _Failure) else loaded


class _Failure(str):
    """What went wrong with which image; a value, because an exception's text comes out mangled."""


class _Reporting(Dataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except Exception as error:  # whatever it is, its reader wants to know the image
            return _Failure(f"image {index} cannot be loaded: {type(error).__name__}: {error}")


def _collate(samples: list):
    failures = [sample for sample in samples if isinstance(sample, _Failure)]
    return failures[0] if failures else default_collate(samples)


def _worker_error(said: str) -> WorkerError:
    cause = said.splitlines()[0].rstrip(". ")
    return WorkerError(f"{cause}; memory may be short: take fewer workers, or --workers 0")


def _name_worker_errors() -> None:
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
            raise _worker_error(str(error)) from None

    named.names_worker_errors = True
    signal.signal(signal.SIGCHLD, named)


def _seed_worker(worker: int) -> None:
    # Ctrl-C goes to all processes; this one stops when the first one has no more use for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _seed_transform(get_worker_info().dataset.dataset, torch.initial_seed() % 2**63)


def _seed_transform(dataset: Dataset, seed: int) -> None:
    # One stream for the whole pipeline. set_random_seed would give every transform the same one,
    # so that crop, flip and hole fall together.
    set_random_state = getattr(getattr(dataset, "transform", None), "set_random_state", None)
    if set_random_state is not None:
        set_random_state(np.random.default_rng(seed), random.Random(seed))
    # torch's Subset has a data set in it, its ConcatDataset several.
    inside = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    for number, part in enumerate(inside):
        if isinstance(part, Dataset):
            _seed_transform(part, (seed + (number << 32)) % 2**63)


def get_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    train: bool,
    num_workers: int = 0,
    timeout_s: float = 120.0,
    device: torch.device | None = None,
    **options: int,
) -> SeededLoader:
    """Batches of (N, 3, 32, 32) float32 images and (N,) int64 labels.

    Args:
        dataset: images through a transform.
        batch_size: images a batch over all processes, see :class:`EpochBatches`.
        train: shuffled, and without a last batch that is too small for BN.
        num_workers: processes that load; 0 loads in this one.
        timeout_s: seconds after which a worker that gives no batch counts as hung.
        device: where the batches go; memory is pinned for cuda.
        options: ``seed``, ``rank`` and ``world_size`` of :class:`EpochBatches`.

    Raises:
        UsageError: a number is out of its range, or no image would be left.
    """
    if num_workers < 0:
        raise UsageError(f"workers is {num_workers}; it must be 0 or more")
    return SeededLoader(
        dataset,
        EpochBatches(len(dataset), batch_size, train, **options),
        num_workers=num_workers,
        timeout=timeout_s if num_workers else 0,
        pin_memory=device is not None and device.type == "cuda",
    )


def fits_device(num_bytes: int, device: torch.device) -> bool:
    """Whether so much may stay on the device: half of a GPU's free memory is for the training."""
    if device.type != "cuda":
        return True
    return 2 * num_bytes <= torch.cuda.mem_get_info(device)[0]
