"""What networks give: logits, log-probabilities or probabilities, alone or inside of something."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onecycle.errors import RunError, UsageError


def class_scores(output: Any) -> Tensor:
    """The classes' scores out of what a network gives.

    Args:
        output: the scores; or a dictionary or an object with ``logits``, such as those of
            transformers, or of torchvision's GoogLeNet in training.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(output, Tensor):
        return output
    is_mapping = isinstance(output, Mapping)
    scores = output.get("logits") if is_mapping else getattr(output, "logits", None)
    if isinstance(scores, Tensor):
        return scores
    found = f"a {type(output).__name__}"
    if is_mapping:
        found = f"a dictionary of {', '.join(map(str, output))}"
    elif isinstance(output, (tuple, list)):
        found += f" of {len(output)}"
    raise UsageError(
        f"the network gives {found}; expected a tensor of (N, K) logits or log-probabilities, or "
        "something with logits: give it a forward that returns the logits alone"
    )


def first_scores(model: nn.Module, images: Tensor) -> Tensor:
    """The (N, K) scores of a first batch.

    Args:
        model: any network.
        images: (N, ...) on its device.

    Raises:
        UsageError: the network does not take such images, or gives something else.
    """
    with names_images(model, images):
        output = model(images)
    scores = class_scores(output)
    if scores.ndim != 2 or len(scores) != len(images) or not scores.is_floating_point():
        kind = str(scores.dtype).removeprefix("torch.")
        raise UsageError(
            f"the network gives {kind} of shape {tuple(scores.shape)} for {len(images)} images; "
            "expected (N, K) logits or log-probabilities: does it end in a layer of K outputs?"
        )
    return scores


@contextlib.contextmanager
def names_images(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Inside the block, an error out of the network's forward says which images it was given.

    Args:
        model: any network.
        images: (N, ...) of the first batch: later ones fail for other reasons.

    Raises:
        UsageError: with the first line of what torch says; the error itself is its cause.
    """
    try:
        yield
    except (RunError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        frames = traceback.walk_tb(error.__traceback__)
        if not any(frame.f_locals.get("self") is model for frame, _ in frames):
            raise  # the loss or the optimizer failed
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        found = f"the network does not take {_described(model, images)}: {said}"
        raise UsageError(found) from error


def _described(model: nn.Module, images: Tensor) -> str:
    """Images in words, with what is likely to be wrong about them."""
    shape, kind = tuple(images.shape[1:]), str(images.dtype).removeprefix("torch.")
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    if not images.is_floating_point():
        return f"{kind} images of {shape} (give floats, normalised: images.float() / 255)"
    if images.dtype != own:
        return f"{kind} images of {shape} (its weights are {str(own).removeprefix('torch.')})"
    if len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4):
        return f"images of {shape} (give (C, H, W): images.permute(0, 3, 1, 2))"
    if len(shape) == 2:
        return f"images of {shape} (give (C, H, W): images.unsqueeze(1))"
    return f"images of {shape}"


class Classifier:
    """The scores of a network whatever it gives: logits, log-probabilities or probabilities.

    The first call decides which.

    Args:
        model: in evaluation mode when it is called.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._ends_in_softmax: bool | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """(N, K) float32 logits or log-probabilities.

        Raises:
            UsageError: as :func:`first_scores` says, of the first call.
        """
        if self._ends_in_softmax is None:
            scores = first_scores(self.model, images)
            self._ends_in_softmax = gives_probabilities(self.model, images, scores)
        else:
            scores = class_scores(self.model(images))
        scores = scores.float()
        # Of a probability that is 0 in float32, the logarithm of the least number above 0.
        return scores.clamp_min(torch.finfo().tiny).log() if self._ends_in_softmax else scores


class LogProbabilities(nn.Module):
    """A network that gives (N, K) log-probabilities, out of one that gives something else.

    Args:
        model: in evaluation mode.
        images: (N, ...) an example, from which is told what the network gives.

    Raises:
        UsageError: as :func:`first_scores` says.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.model, self.scores_of = model, Classifier(model)
        with torch.no_grad():
            self.scores_of(images)

    def forward(self, images: Tensor) -> Tensor:
        """(N, K) float32 log-probabilities."""
        return self.scores_of(images).log_softmax(1)


def gives_probabilities(model: nn.Module, images: Tensor, scores: Tensor) -> bool:
    """Whether a network ends in a softmax.

    Args:
        model: in evaluation mode.
        images: (N, ...), one or more.
        scores: (N, K) of these images.
    """
    # The logits of a single image may sum to 1 by chance; those of its negative then do not.
    return _are_distributions(scores) and _are_distributions(class_scores(model(1 - 2 * images)))


def _are_distributions(scores: Tensor) -> bool:
    sums = scores.float().sum(1)
    return bool(((scores >= 0).all(1) & ((sums - 1).abs() < 1e-3)).all()) and len(scores) > 0


def probabilities(output: Tensor) -> Tensor:
    """(..., K) float32 probabilities from (..., K) logits or log-probabilities."""
    return output.float().softmax(-1)
