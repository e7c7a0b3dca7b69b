"""Several processes that train one network together, on one machine or several."""

from __future__ import annotations

import contextlib
import inspect
import json
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from onecycle.errors import UsageError
from onecycle.training.waiting import Watch


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
        watch: says when this process waits for long; None: nothing does.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    watch: Watch | None = None

    def waiting(self, what: str) -> contextlib.AbstractContextManager:
        """The block waits for the other processes, for what is named."""
        return contextlib.nullcontext() if self.watch is None else self.watch.waiting(what)

    @contextlib.contextmanager
    def one_by_machine_first(self) -> Iterator[None]:
        """Run the block in one process of each machine first, then in the others."""
        if self.local_rank:
            self.agrees(True, "their images")
        yield
        if not self.local_rank:
            self.agrees(True, "their images")

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes."""
        if self.world_size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # No broadcast of the statistics of batch norm in every step: ``align`` does it once per epoch.
        names = inspect.signature(DistributedDataParallel.__init__).parameters
        newer, older = "forward_sync_buffers", "broadcast_buffers"
        options = {newer if newer in names else older: False}
        with self.waiting("the network"):
            return DistributedDataParallel(module, device_ids=devices, **options)

    def sum(self, tensor: Tensor, what: str = "their measurements") -> Tensor:
        """The sum of the tensor over the processes, in place; all get the same."""
        if self.world_size > 1:
            with self.waiting(what):
                dist.all_reduce(tensor)
        return tensor

    def align(self, model: Any) -> None:
        """Give every process the ``buffers()`` (running statistics) of process 0."""
        if self.world_size > 1:
            with self.waiting("the statistics of process 0"):
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
        width = self.most(outputs.shape[1])  # a process without images does not know it
        # Exactly one process fills each place, so the sum joins the shares.
        all_outputs = torch.zeros(int(number), width, device=self.device)
        all_labels = torch.zeros(int(number), dtype=torch.int64, device=self.device)
        if len(places):
            all_outputs[places] = outputs.to(self.device)
            all_labels[places] = labels.to(self.device)
        return self.sum(all_outputs), self.sum(all_labels)

    def same(self, value: Any) -> Any:
        """The value of process 0, in all processes: plain data."""
        values = [value]
        if self.world_size > 1:
            with self.waiting("process 0"):
                dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def most(self, number: int) -> int:
        """The largest number of all processes."""
        largest = torch.tensor([number], device=self.device)
        if self.world_size > 1:
            with self.waiting("their numbers"):
                dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def agrees(self, value: bool, what: str = "their answer") -> bool:
        """Whether the value is the same in all processes; each waits here for all others."""
        # In a broadcast the source would not wait.
        count = self.sum(torch.tensor(int(value), device=self.device), what)
        return count.item() in (0, self.world_size)

    def compare(self, values: Mapping[str, Any]) -> None:
        """Refuse to go on if the processes differ; each waits here for all others.

        Args:
            values: what decides the numbers, plain data in any depth.

        Raises:
            UsageError: in all processes; it names the odd one, what differs, and both values.
        """
        if self.world_size == 1:
            return
        own, everyone = (socket.gethostname(), _flat(values)), [None] * self.world_size
        with self.waiting("their options"):
            dist.all_gather_object(everyone, own)
        if found := odd_one(*zip(*everyone)):
            raise UsageError(f"{found}; start all processes with the same options, code and images")


def odd_one(hosts: Sequence[str], all_values: Sequence[Mapping[str, Any]]) -> str:
    """Where the values of the processes differ first, in words; "" if nowhere.

    Args:
        hosts: the machine of each process, in the order of the ranks.
        all_values: what each process has, by name.
    """
    on = [f" on {host}" if len(set(hosts)) > 1 else "" for host in hosts]
    for name in dict.fromkeys(name for values in all_values for name in values):
        found = [values.get(name) for values in all_values]
        texts = ["none" if value is None else json.dumps(value) for value in found]
        (usual, count), *rest = Counter(texts).most_common()
        if not rest:
            continue
        usual = texts[0] if rest[0][1] == count else usual  # as many: process 0 is right
        odd = next(rank for rank, text in enumerate(texts) if text != usual)
        other = texts.index(usual)
        return (
            f"process {odd}{on[odd]} has {name} {_short(texts[odd])}, "
            f"process {other}{on[other]} has {_short(usual)}"
        )
    return ""


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flat(values: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Nested values by names with dots."""
    flat = {}
    for key, value in values.items():
        path = f"{name}.{key}" if name else str(key)
        flat |= _flat(value, path) if isinstance(value, Mapping) else {path: value}
    return flat
