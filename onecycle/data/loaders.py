"""Loaders whose order and augmentation depend on (seed, epoch) alone: resident or with workers.

Both have the same methods: ``set_epoch(epoch, start=0)`` chooses the epoch of the next iteration
and how many of its batches are left out, each iteration moves on to the next epoch, ``len`` is the
number of batches per epoch, and ``global_batch(i)`` the number of images in batch i over all
processes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onecycle.data.workers import (
    ReportingDataset,
    check_sendable,
    checked_batches,
    collate,
    name_worker_errors,
    read_ahead,
    seed_transform,
    seed_worker,
    unsendable,
    worker_error,
)
from onecycle.errors import UsageError


def fitting_batch_size(count: int) -> int:
    """The largest power of two that leaves eight batches per epoch; 2 or more.

    Args:
        count: training images.
    """
    return 1 << max(count // 8, 2).bit_length() - 1


@dataclass
class EpochBatches:
    """Which images are in each batch of an epoch, and which of them belong to this process.

    Every global batch is dealt to the processes in turn, so that their shares differ by at most
    one image and add up to the batch.

    Args:
        count: number of images.
        batch_size: images per batch over all processes; the last batch of an epoch is smaller.
        train: True shuffles, and leaves out a last batch in which a process would have fewer than
            two images, on which BN cannot train. False keeps all images in their order; a process
            skips a batch in which it has no share.
        drop_last: leave out any last batch that is smaller than the others; in training only.
        seed: of the order.
        rank: number of this process, 0..world_size-1.
        world_size: number of processes.

    Raises:
        UsageError: a number is out of its range, or a process would have nothing to train on.
    """

    count: int
    batch_size: int
    train: bool
    drop_last: bool = field(default=False, kw_only=True)
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
            fitting = max(least, fitting_batch_size(self.count))
            raise UsageError(
                f"batch_size is {self.batch_size}, more than the {self.count} training images; "
                f"try batch_size={fitting} (--batch-size {fitting})"
            )
        if self.drop_last and not self.train:
            raise UsageError(
                "drop_last is True with train=False, which keeps all images; leave it out"
            )
        least = self.batch_size if self.drop_last else least
        self.num_global = self.count // self.batch_size + (self.count % self.batch_size >= least)

    def global_batch(self, index: int) -> int:
        """Number of images in batch ``index`` of an epoch, over all processes."""
        return min(self.batch_size, self.count - index * self.batch_size)

    def __len__(self) -> int:
        """Number of batches per epoch in which this process has a share."""
        return sum(self.global_batch(i) > self.rank for i in range(self.num_global))

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of its first batches are left out."""
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
    """The methods that both loaders share; they have ``batches``."""

    batches: EpochBatches

    def global_batch(self, index: int) -> int:
        """Number of images in batch ``index`` of an epoch, over all processes."""
        return self.batches.global_batch(index)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iteration, which leaves out its first ``start`` batches."""
        self.batches.set_epoch(epoch, start)

    def indices(self) -> Tensor:
        """(M,) int64 indices of the images of the next iteration, in its order."""
        shares = list(self.batches.shares(self.batches.order()))[self.batches.start :]
        return torch.cat(shares) if shares else torch.empty(0, dtype=torch.int64)


class ResidentLoader(_Epochs):
    """Batches of images that are kept and augmented on the device, or read ahead and sent there.

    Args:
        transform: ``transform(indices, epoch)``, which takes (B,) int64 image indices on the
            device and the number of the epoch, and gives the images;
            ``get_train_batch_transform`` and ``get_test_batch_transform`` make one.
        labels: (N,) class indices.
        batch_size: images per batch over all processes; the last batch of an epoch is smaller.
        device: of the images.
        options: ``train`` (required), ``seed``, ``rank`` and ``world_size``, see
            :class:`EpochBatches`.

    Raises:
        UsageError: a number is out of its range, or a process would have nothing to train on.
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
        order = self.batches.order()
        self.batches.set_epoch(epoch + 1)
        on_device = self.batches.shares(order.to(self.device))  # the only copy per epoch
        shares = islice(on_device, start, None)
        if fetch := getattr(self.transform, "fetch", None):
            ahead = read_ahead(fetch, islice(self.batches.shares(order), start, None))
            for share, pixels in zip(shares, ahead):
                yield self.transform(share, epoch, pixels), self.labels[share]
        else:
            for share in shares:
                yield self.transform(share, epoch), self.labels[share]


class SeededLoader(_Epochs, DataLoader):
    """A DataLoader whose order and augmentation depend on (seed, epoch) alone.

    Workers and processes never share random numbers, and no epoch repeats those of another. The
    augmentation changes with the number of workers. Batches that are left out are computed and
    thrown away, so that the others are the same as in a complete epoch.

    Args:
        dataset: the images. A ``transform`` with ``set_random_state`` (albumentations) is seeded
            at every epoch, also that of a data set inside a ``Subset`` or ``ConcatDataset``.
        batches: which images are in each batch.
        options: other options of DataLoader, except ``persistent_workers``: workers that stay
            would not be seeded again.

    Raises:
        DataError: while iterating, the data set raised; the message names the image.
        UsageError: while iterating, the data set cannot be sent to the workers.
        WorkerError: while iterating, a worker died, or gave nothing within ``timeout`` seconds.
    """

    def __init__(self, dataset: Dataset, batches: EpochBatches, **options) -> None:
        self.batches = batches
        super().__init__(
            ReportingDataset(dataset),
            batch_sampler=batches,
            generator=torch.Generator(),
            worker_init_fn=seed_worker,
            collate_fn=collate,
            **options,
        )

    def __iter__(self) -> Iterator:
        epoch, start = self.batches.epoch, self.batches.start
        entropy = [self.batches.seed, epoch, self.batches.rank]
        state = np.random.SeedSequence(entropy).generate_state(2)
        self.generator.manual_seed(int(state[0]))
        seed_transform(self.dataset.dataset, int(state[1]))
        context = self.multiprocessing_context or multiprocessing
        if self.num_workers and context.get_start_method() != "fork":
            check_sendable(self.dataset)
        try:
            iterator = super().__iter__()
        except RuntimeError as error:  # a worker has already died
            raise worker_error(str(error)) if "DataLoader" in str(error) else error from None
        except Exception as error:  # of several types
            if "pickl" not in f"{type(error).__name__} {error}".lower():
                raise
            raise unsendable(str(error)) from error
        if self.num_workers:
            name_worker_errors()
        self.batches.set_epoch(epoch + 1)
        return checked_batches(iterator, epoch, start)


_ORDER = ("seed", "rank", "world_size", "drop_last")
_PASSED = ("prefetch_factor", "multiprocessing_context", "pin_memory_device", "in_order")
_REPLACED = {
    "sampler": "seed and epoch decide the order; give a Subset of the data set for other images",
    "batch_sampler": "batch_size, train and seed decide the batches",
    "shuffle": "train=True shuffles, train=False keeps the order",
    "persistent_workers": "workers start anew in each epoch, with its seed",
    "generator": "give a seed",
    "worker_init_fn": "give a seed",
    "collate_fn": "give a data set of (image, label) pairs",
    "timeout": "give timeout_s",
    "pin_memory": "give the device",
}
"""Options of DataLoader that do not go with this loader, and what to do instead."""


def get_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    train: bool,
    num_workers: int = 0,
    timeout_s: float = 120.0,
    device: torch.device | None = None,
    **options: Any,
) -> SeededLoader:
    """Batches of images that go through a transform one by one, with worker processes if wanted.

    Args:
        dataset: images with a transform that gives (3, 32, 32) float32.
        batch_size: images per batch over all processes; the last batch of an epoch is smaller.
        train: True shuffles and leaves out a last batch that is too small for BN; False keeps all
            images in their order.
        num_workers: number of worker processes; 0 loads in this process.
        timeout_s: seconds after which a worker that gives no batch counts as hung.
        device: where the batches will go; for cuda they are put into pinned memory.
        options: ``seed``, ``rank``, ``world_size`` and ``drop_last``, see :class:`EpochBatches`;
            and others of DataLoader, such as ``prefetch_factor``.

    Returns:
        An iterable over batches: (B, 3, 32, 32) float32 images and (B,) int64 labels.

    Raises:
        UsageError: a number is out of its range, no image would be left, or an option of DataLoader
            is none of this loader.
    """
    for name in options:
        if name not in _ORDER + _PASSED:
            instead = _REPLACED.get(name, f"it has {', '.join(_ORDER + _PASSED)}")
            raise UsageError(f"{name} is no option of get_loader: {instead}")
    if num_workers < 0:
        raise UsageError(f"num_workers is {num_workers} (--workers); it must be 0 or more")
    return SeededLoader(
        dataset,
        EpochBatches(
            len(dataset),
            batch_size,
            train,
            **{name: options.pop(name) for name in _ORDER if name in options},
        ),
        num_workers=num_workers,
        timeout=timeout_s if num_workers else 0,
        pin_memory=device is not None and device.type == "cuda",
        **options,
    )


def fits_device(num_bytes: int, device: torch.device) -> bool:
    """Whether ``num_bytes`` fit on the device; half of its memory is for the training."""
    if device.type == "cuda":
        return 2 * num_bytes <= torch.cuda.mem_get_info(device)[0]
    if hasattr(os, "sysconf"):  # not on Windows
        return 2 * num_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return True
