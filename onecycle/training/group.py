"""Several processes that train one network together, on one machine or several."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from onecycle.errors import UsageError

TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: one of them may download images or run a range test."""


@dataclass(frozen=True)
class Group:
    """The processes that train together; each has a share of every batch. By default one process.

    The gradient is the mean over the whole batch, so schedule and recipe mean the same as in one
    process. In training, batch norm uses the statistics of each process's share; the running
    statistics, which the evaluation uses, are those of process 0.

    Args:
        device: where this process computes.
        rank: number of this process, 0..world_size - 1.
        world_size: number of processes.
        local_rank: number of this process among those of its machine.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @contextlib.contextmanager
    def one_by_machine_first(self) -> Iterator[None]:
        """Run the block in one process of each machine first, then in the others."""
        if self.local_rank:
            self.agrees(True)
        yield
        if not self.local_rank:
            self.agrees(True)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes."""
        if self.world_size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # No broadcast of the statistics of batch norm in every step: ``align`` does it once per epoch.
        return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the tensor over the processes, in place; all get the same."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def align(self, model: Any) -> None:
        """Give every process the ``buffers()`` (running statistics) of process 0."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, outputs: Tensor, labels: Tensor, loader: Any) -> tuple[Tensor, Tensor]:
        """Join the shares of all processes, in the order of the data set.

        Args:
            outputs: (n, K) float, of this process's images; n may be 0.
            labels: (n,) int64, of the same images.
            loader: the loader of these images; its ``indices()`` are their places among all.

        Returns:
            (N, K) outputs and (N,) labels of all images.
        """
        if self.world_size == 1:
            return outputs, labels
        places = torch.as_tensor(loader.indices(), device=self.device)
        number = self.sum(torch.tensor([len(places)], device=self.device))
        width = torch.tensor([outputs.shape[1]], device=self.device)
        dist.all_reduce(width, dist.ReduceOp.MAX)  # a process without images does not know it
        # Exactly one process fills each place, so the sum joins the shares.
        all_outputs = torch.zeros(int(number), int(width), device=self.device)
        all_labels = torch.zeros(int(number), dtype=torch.int64, device=self.device)
        if len(places):
            all_outputs[places] = outputs.to(self.device)
            all_labels[places] = labels.to(self.device)
        return self.sum(all_outputs), self.sum(all_labels)

    def same(self, value: Any) -> Any:
        """The value of process 0, in all processes: plain data."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def agrees(self, value: bool) -> bool:
        """Whether the value is the same in all processes; each waits here for all others."""
        # In a broadcast the source would not wait.
        count = self.sum(torch.tensor(int(value), device=self.device))
        return count.item() in (0, self.world_size)


@contextlib.contextmanager
def join_group(device: torch.device) -> Iterator[Group]:
    """The group that ``torchrun`` started this process in, or a group of one.

    The processes communicate by NCCL on GPUs, and by gloo elsewhere.

    Args:
        device: as chosen for a single process; with several GPUs each process gets its own.

    Raises:
        UsageError: this machine has more processes than GPUs, or several on mps; or a variable of
            the launcher is missing or no number.
    """
    world_size = _number("WORLD_SIZE", 1)
    if world_size == 1 or not os.environ.get("RANK"):
        yield Group(device)
        return
    if device.type == "mps":
        raise UsageError("mps trains in one process only; start it without torchrun, or on cpu")
    rank, local_rank = _number("RANK", 0), _number("LOCAL_RANK", 0)
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"process {local_rank} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}; lower --nproc-per-node"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UsageError(f"{' and '.join(missing)} is not set; start the processes with torchrun")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Group(device, rank, world_size, local_rank)
    finally:
        dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UsageError(f"{name} is {text!r}; it must be a whole number, as torchrun sets it")
    return int(text)
