"""What the loops of other libraries are given, and how they take turns; see baseline.py."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils.data import DataLoader

from onecycle.data.dataset import ImageDataset


@dataclass
class Task:
    """A training of some epochs, and the end of a pipe at which it waits for its turns.

    Args:
        images: to train on.
        network: class of the network; without arguments it has ten classes.
        batch_size: of a step.
        epochs: how many; an epoch is a turn.
        workers: processes that load images.
        device: "cpu" or "cuda".
        autocast: the forward pass is in bfloat16.
    """

    images: ImageDataset
    network: type[torch.nn.Module]
    batch_size: int
    epochs: int
    workers: int
    device: str
    autocast: bool
    pipe: Connection | None = None
    begun: float = 0.0

    def begin(self) -> None:
        """Wait for the turn."""
        self.pipe.recv()
        self.begun = time.perf_counter()

    def end(self) -> None:
        """Tell how many seconds it took."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.pipe.send(time.perf_counter() - self.begun)


def run(module: str, task: Task, pipe: Connection) -> None:
    """Train; what goes wrong is told through the pipe."""
    task.pipe = pipe
    try:
        importlib.import_module(f"benchmarks.elsewhere.{module}").train(task)
    except EOFError:  # the other end is gone
        pass
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


def albumentations_loader(task: Task) -> DataLoader:
    """Image by image, with the assignment's transforms."""
    from transformation import get_train_aug_transform  # here, since fastai's has its own

    transform = get_train_aug_transform(task.images.mean, task.images.std)
    return DataLoader(
        task.images.with_transform(transform), task.batch_size, shuffle=True,
        num_workers=task.workers, pin_memory=task.device == "cuda",
    )  # fmt: skip


def one_cycle(optimizer: torch.optim.Optimizer, task: Task, steps: int) -> Any:
    """PyTorch's one cycle over all steps."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.001, epochs=task.epochs, steps_per_epoch=steps,
        pct_start=0.3,  # 1 / pct_start steps would divide by zero
    )  # fmt: skip
