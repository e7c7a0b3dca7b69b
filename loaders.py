"""Seeded loaders: order and augmentation follow from (seed, epoch)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from errors import UsageError


class SeededLoader(DataLoader):
    """A DataLoader whose order and augmentation follow from (seed, epoch) alone.

    No two workers share their random numbers, and no epoch repeats those of another. With another
    number of workers the augmentation differs.

    Args:
        dataset: images; a ``transform`` with ``set_random_state`` is seeded at every epoch.
        batch_size: images a batch.
        seed: 0 or more.
        options: whatever else a DataLoader takes, but ``persistent_workers``: a worker that stays
            would not be seeded anew.
    """

    def __init__(self, dataset: Dataset, batch_size: int, *, seed: int, **options) -> None:
        self.seed = seed
        self.epoch = 0
        super().__init__(
            dataset,
            batch_size,
            generator=torch.Generator(),
            worker_init_fn=_seed_worker,
            **options,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws; each iteration goes on to the next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator:
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(2)
        self.generator.manual_seed(int(state[0]))
        _seed_transform(self.dataset, int(state[1]))
        self.epoch += 1
        return super().__iter__()


def _seed_worker(worker: int) -> None:
    _seed_transform(get_worker_info().dataset, torch.initial_seed() % 2**63)


def _seed_transform(dataset: Dataset, seed: int) -> None:
    # One stream for the whole pipeline. set_random_seed would give every transform the same one,
    # so that crop, flip and hole fall together.
    set_random_state = getattr(getattr(dataset, "transform", None), "set_random_state", None)
    if set_random_state is not None:
        set_random_state(np.random.default_rng(seed), random.Random(seed))


def get_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    train: bool,
    seed: int = 0,
    num_workers: int = 0,
    device: torch.device | None = None,
) -> SeededLoader:
    """Batches of (N, 3, 32, 32) float32 images and (N,) int64 labels.

    Args:
        dataset: images through a transform.
        batch_size: images a batch; the last one of an epoch is smaller.
        train: shuffled, and without a last batch of one image, on which BN cannot train.
        seed: of order and augmentation.
        num_workers: processes that load; 0 loads in this one.
        device: where the batches go; memory is pinned for cuda.

    Raises:
        UsageError: no image would be left, or the number of workers is negative.
    """
    if num_workers < 0:
        raise UsageError(f"workers is {num_workers}; it must be 0 or more")
    if train and len(dataset) < 2:
        raise UsageError(f"{len(dataset)} training images; BN needs 2 or more")
    if train and batch_size > len(dataset):
        raise UsageError(
            f"batch_size is {batch_size}, more than the {len(dataset)} training images"
        )
    return SeededLoader(
        dataset,
        batch_size,
        seed=seed,
        shuffle=train,
        drop_last=train and len(dataset) % batch_size == 1,
        num_workers=num_workers,
        pin_memory=device is not None and device.type == "cuda",
    )
