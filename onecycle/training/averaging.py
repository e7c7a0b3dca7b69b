"""Weights beside those of the last step: their running average, and those of the best epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onecycle.records import History


class KeptWeights:
    """Follows a training, and gives the network the weights that it is to end with.

    Args:
        model: on its device; the network in training.
        keep: "last", "average", or "best" for the weights of the epoch with the highest accuracy.
        average_steps: horizon of the average; 0: none. It is the plain mean of all steps up to
            this number, then exponential: each step has 1 / ``average_steps`` of it. The running
            statistics of batch norm are averaged alike; counters are those of the last step.

    Source:
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992).
    """

    def __init__(self, model: nn.Module, *, keep: str = "last", average_steps: int = 0) -> None:
        self.model = model
        self.keep = keep
        self.average_steps = average_steps
        self.steps = 0
        self.average = self._copy() if average_steps else {}
        self.best = self._copy() if keep == "best" else {}
        names = [name for name, value in self.average.items() if value.is_floating_point()]
        current = model.state_dict()
        self._means = [self.average[name] for name in names]
        self._values = [current[name] for name in names]
        self._counters = [
            (self.average[name], current[name]) for name in self.average if name not in names
        ]

    def note_step(self) -> None:
        """Take the weights after a step into the average."""
        if not self.average:
            return
        self.steps += 1
        torch._foreach_lerp_(self._means, self._values, 1 / min(self.steps, self.average_steps))
        for counter, value in self._counters:
            counter.copy_(value)

    def note_epoch(self, history: History) -> None:
        """Take the weights after an epoch's evaluation, if it is the best so far."""
        if self.best and history.best is history.epochs[-1]:
            _fill(self.best, self.model.state_dict())

    def apply(self) -> None:
        """Give the network the weights to keep, after the training."""
        if self.keep != "last":
            self._load(self.average if self.keep == "average" else self.best)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The network has the average inside the block, and its own weights afterwards."""
        before = self._copy()
        self._load(self.average)
        try:
            yield
        finally:
            self._load(before)

    def buffers(self) -> list[Tensor]:
        """The averages of the network's buffers, which ``Group.align`` makes the same."""
        names = {name for name, _ in self.model.named_buffers()}
        return [value for name, value in self.average.items() if name in names]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"steps": self.steps, "average": self.average, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace everything by what ``state_dict`` gave.

        Raises:
            KeyError: a tensor is missing.
        """
        self.steps = state["steps"]
        for ours, theirs in ((self.average, state["average"]), (self.best, state["best"])):
            _fill(ours, theirs)

    def _copy(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {name: value.clone() for name, value in state.items() if torch.is_tensor(value)}

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(self.model.state_dict() | dict(weights))


def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])
