"""CUDA graphs of what a step computes before its update: recorded once, then started as a whole."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onecycle.errors import UsageError

MOST = 4
"""Recordings, each with memory of its own; batches of further kinds are computed as they are."""


@dataclass
class Recording:
    """A graph with the tensors that it reads and writes, always the same ones."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    gradients: list[tuple[nn.Parameter, Tensor | None]]
    replay: Callable[[], None]

    def __call__(self, *inputs: Tensor, share: float) -> tuple[Tensor, ...]:
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
    float16's scaling work as without a graph, and the bits are the same. What is frozen, what is in
    evaluation mode, and where parameters and buffers lie may change: that is recorded anew. Other
    numbers of Python that the function reads (the momentum of batch norm, a count of steps in the
    loss) stay as they were when it was recorded.

    Args:
        module: of which the parameters get gradients.
        function: ``function(*inputs, share=share)``, which gives tensors. It may not wait for the
            device.
    """

    def __init__(self, module: nn.Module, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.module = module
        self.function = function
        self.recordings: dict[Hashable, Callable[..., tuple[Tensor, ...]] | None] = {}

    def __call__(self, *inputs: Tensor, share: float) -> tuple[Tensor, ...]:
        """What the function gives for a batch.

        Raises:
            UsageError: the function cannot be recorded.
        """
        key = (share, *((each.shape, each.dtype, each.stride()) for each in inputs), *self._state())
        if key in self.recordings and self.recordings[key] is None:
            self.recordings[key] = self._record(inputs, share)
        if key in self.recordings:
            return self.recordings[key](*inputs, share=share)
        if len(self.recordings) == MOST:
            return self.function(*inputs, share=share)
        self.recordings[key] = None
        own = [each.clone() for each in inputs]  # aligned in memory as what is recorded
        return aside(lambda: self.function(*own, share=share), inputs[0].device)

    def _state(self) -> tuple[Hashable, ...]:
        tensors = [*self.module.parameters(), *self.module.buffers()]
        places = tuple((each.data_ptr(), each.requires_grad) for each in tensors)
        return places, tuple(each.training for each in self.module.modules())

    def _record(self, inputs: Sequence[Tensor], share: float) -> Callable[..., tuple[Tensor, ...]]:
        own = tuple(each.clone() for each in inputs)
        parameters = list(self.module.parameters())
        for parameter in parameters:
            parameter.grad = None  # so that it is made in the graph's memory
        try:
            outputs, replay = record(lambda: self.function(*own, share=share), own[0].device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if any(self.recordings.values()):  # of another shape: the training goes on
                return self.function
            said = str(error).strip().splitlines()[0]
            raise UsageError(
                f"a step of this training cannot be recorded as a CUDA graph ({said}); leave compile off"
            ) from error
        return Recording(own, outputs, [(p, p.grad) for p in parameters], replay)

    def release(self) -> None:
        """Give the memory back."""
        self.recordings.clear()
        self.module.zero_grad()


def aside(run: Callable[[], Any], device: torch.device) -> Any:
    """Run on another stream than the default one, as what is recorded afterwards asks for."""
    current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = run()
    current.wait_stream(stream)
    return result


def record(run: Callable[[], Any], device: torch.device) -> tuple[Any, Callable[[], None]]:
    """What a function gives, in memory that stays, and what computes it anew. It is not computed yet.

    Raises:
        RuntimeError: what the function raised; the current stream is that of before.
    """
    graph, before, causes = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device), []
    try:
        # Other threads may send images in the meantime.
        with (
            torch.cuda.device(device),
            torch.cuda.graph(
                graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"
            ),
        ):
            try:
                result = run()
            except BaseException as error:
                causes.append(error)
                raise
    except BaseException as error:
        torch.cuda.set_stream(before)  # which an invalid graph does not do
        raise (*causes, error)[0] from None
    return result, graph.replay
