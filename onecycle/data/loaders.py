"""Loaders whose order and augmentation follow from (seed, epoch): resident or with workers.

Both have one protocol: ``set_epoch(epoch, start=0)`` chooses what the next iteration yields and
how many batches of it are left out, each iteration goes on to the next epoch, ``len`` counts the
batches of a whole one, and ``global_batch(i)`` the images in batch i over all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onecycle.data.workers import (
    Reporting,
    checked,
    collate,
    name_worker_errors,
    seed_transform,
    seed_worker,
    worker_error,
)
from onecycle.errors import UsageError


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
            fitting = max(2 ** (self.count // 8).bit_length() // 2, least)
            raise UsageError(
                f"batch_size is {self.batch_size}, more than the {self.count} training images; try "
                f"batch_size={fitting} (--batch-size {fitting})"
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
            Reporting(dataset),
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
        try:
            iterator = super().__iter__()
        except RuntimeError as error:  # one has died already
            raise worker_error(str(error)) if "DataLoader" in str(error) else error from None
        if self.num_workers:
            name_worker_errors()
        self.batches.set_epoch(epoch + 1)
        return checked(iterator, epoch, start)


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
