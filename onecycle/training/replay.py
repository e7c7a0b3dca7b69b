"""CUDA graphs of what a step computes before its update: recorded once, then started as a whole."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onecycle.errors import UsageError

MOST = 4
"""Shapes that are recorded, each with memory of its own; batches of further ones are computed as they are."""


@dataclass
class Recording:
    """A graph with the tensors that it reads and writes, always the same ones."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    gradients: list[tuple[nn.Parameter, Tensor]]
    replay: Callable[[], None]

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return tuple(output.clone() for output in self.outputs)


class Replays:
    """A function of a batch that leaves gradients, as one graph for each shape of the batch.

    The first batch of a shape is computed as it is: that loads kernels, and makes what is made once.
    The second one is recorded. The update stays outside, so that any optimizer, its learning rate and
    float16's scaling work as without a graph, and the bits are the same.

    Args:
        parameters: that get gradients.
        function: ``function(*inputs, share=share)``, which gives tensors. It may not wait for the
            device.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], function: Callable[..., tuple[Tensor, ...]]
    ) -> None:
        self.parameters = list(parameters)
        self.function = function
        self.recordings: dict[Hashable, Recording | None] = {}

    def __call__(self, *inputs: Tensor, share: float) -> tuple[Tensor, ...]:
        """What the function gives for a batch.

        Raises:
            UsageError: the function cannot be recorded.
        """
        key = (share, *((each.shape, each.dtype, each.stride()) for each in inputs))
        if key not in self.recordings and len(self.recordings) == MOST:
            return self.function(*inputs, share=share)
        if key not in self.recordings:
            self.recordings[key] = None
            return aside(lambda: self.function(*inputs, share=share))
        if self.recordings[key] is None:
            self.recordings[key] = self._record(inputs, share)
        return self.recordings[key](inputs)

    def _record(self, inputs: Sequence[Tensor], share: float) -> Recording:
        own = tuple(each.clone() for each in inputs)
        for parameter in self.parameters:
            parameter.grad = None  # so that it is made in the graph's memory
        try:
            outputs, replay = record(lambda: self.function(*own, share=share))
        except RuntimeError as error:
            said = str(error).strip().splitlines()[0]
            raise UsageError(
                f"a step of this training cannot be recorded as a CUDA graph ({said}); leave compile off"
            ) from error
        gradients = [(p, p.grad) for p in self.parameters if p.grad is not None]
        return Recording(own, outputs, gradients, replay)


def aside(run: Callable[[], Any]) -> Any:
    """Run on another stream than the default one, as what is recorded afterwards asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = run()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def record(run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """What a function gives, in memory that stays, and what computes it anew. It is not computed yet."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may send images in the meantime.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()
    return result, graph.replay
