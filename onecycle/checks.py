"""What network, loader and optimizer need of each other, checked before a weight moves."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onecycle.errors import DataError, RunError, UsageError
from onecycle.modules import eval_mode
from onecycle.outputs import first_scores, gives_probabilities

PROBED = 2
"""Images of the first batch that go through the network for the check."""


def as_pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of a loader's batch.

    Args:
        batch: a pair of tensors; class indices of any integer type, also of shape (N, 1).

    Returns:
        (N, ...) images, and labels: class indices are (N,) int64, others stay as they are.

    Raises:
        UsageError: the batch is something else; the message names its parts.
    """
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if not is_pair or not all(isinstance(part, Tensor) for part in batch):
        raise UsageError(
            f"a batch of the loader is {_in_words(batch)}; expected a pair of tensors, images and "
            "labels: give the loader a collate_fn, or its data set a __getitem__, that returns them"
        )
    images, labels = batch
    if not (labels.is_floating_point() or labels.dtype == torch.bool):
        labels = labels.long()
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels.squeeze(1)
    if not (images.ndim and labels.ndim and len(images) == len(labels)):
        raise UsageError(
            f"a batch of the loader is {_in_words(batch)}; expected as many labels as images"
        )
    return images, labels


def check_first_batch(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    autocast: contextlib.AbstractContextManager | None = None,
) -> None:
    """Refuse what the network cannot be trained on. Nothing changes, not even random numbers.

    Args:
        model: as it will be trained, on the device of the batch.
        images: (N, ...) the first batch.
        labels: (N,) its classes; or (N, K) float, a probability for each class.
        autocast: the context in which matrix products have the precision of the training.

    Raises:
        DataError: images are not finite.
        UsageError: the network does not take the images; it gives no scores, or probabilities; or
            the labels are not its classes.
    """
    check_finite(images)
    with _probing(model, images, autocast) as (model, few):
        scores = first_scores(model, few)
        if gives_probabilities(model, few, scores):
            raise UsageError(
                "the network gives probabilities, and a loss expects logits or log-probabilities; "
                "leave its last softmax out, or use log-softmax (nn.LogSoftmax(dim=1))"
            )
    check_labels(labels, scores.shape[1], soft=True)


@contextlib.contextmanager
def names_loss(
    model: nn.Module,
    criterion: Callable,
    batch: Sequence[Tensor],
    autocast: contextlib.AbstractContextManager | None = None,
) -> Iterator[None]:
    """Inside the block, which trains on the first batch, an error of the loss says what it is.

    Only then the loss is called once more: it may count its calls, or draw random numbers.

    Args:
        model: see :func:`check_first_batch`.
        criterion: the loss of (output, labels).
        batch: images and labels, read after an error.
        autocast: see :func:`check_first_batch`.

    Raises:
        UsageError: the loss does not take scores and labels, or gives something else than one
            number.
    """
    try:
        yield
    except (RunError, torch.OutOfMemoryError):
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if batch:
            with _probing(model, batch[0], autocast) as (model, few):
                _check_loss(criterion, first_scores(model, few), batch[1][:PROBED], error)
        raise


def _check_loss(criterion: Callable, scores: Tensor, labels: Tensor, first: Exception) -> None:
    expected = "expected a mean over the batch of (N, K) scores and their (N,) class indices"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were shown before
            loss = criterion(scores, labels)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"the loss does not take scores {tuple(scores.shape)} and labels "
            f"{tuple(labels.shape)}: {reason}; {expected}"
        ) from first
    if not isinstance(loss, Tensor) or loss.ndim:
        raise UsageError(
            f"the loss is {_in_words(loss)}; {expected}, such as reduction='mean' gives"
        ) from first


def check_classes(
    model: nn.Module,
    images: Tensor,
    classes: Sequence[str],
    autocast: contextlib.AbstractContextManager | None = None,
) -> None:
    """Refuse a network that has not one output for each class. Nothing changes.

    Args:
        model: see :func:`check_first_batch`.
        images: (N, ...), one or more.
        classes: the K class names.
        autocast: see :func:`check_first_batch`.

    Raises:
        UsageError: it has another number of outputs, or does not take the images.
    """
    with _probing(model, images, autocast) as (model, few):
        found = first_scores(model, few).shape[1]
    if found != len(classes):
        raise UsageError(
            f"the network has {found} outputs and the images have {len(classes)} classes; "
            "give a network whose last layer has as many"
        )


@contextlib.contextmanager
def _probing(
    model: nn.Module, images: Tensor, autocast: contextlib.AbstractContextManager | None
) -> Iterator[tuple[nn.Module, Tensor]]:
    """The network and a few of the images, for a forward pass that changes nothing."""
    model = getattr(model, "_orig_mod", model)  # a compiled one would compile for so few images
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=_cuda_devices(images)),
        eval_mode(model),
        autocast or contextlib.nullcontext(),
    ):
        yield model, images[:PROBED]


def check_finite(images: Tensor) -> None:
    """Refuse a first batch with NaN or infinite values.

    Raises:
        DataError: there are some.
    """
    if images.is_floating_point():
        finite = images.flatten(1).isfinite().all(1)
        if not finite.all():
            raise DataError(
                f"{int((~finite).sum())} of the {len(images)} images of the first batch hold NaN "
                "or infinite values; look at the data set and its transform"
            )


def check_labels(labels: Tensor, num_classes: int, *, soft: bool = False) -> None:
    """Refuse labels that are not the classes of a network.

    Args:
        labels: (N,) class indices, N of 1 or more.
        num_classes: K, the outputs of the network.
        soft: (N, K) float labels, a probability for each class, are allowed as well.

    Raises:
        UsageError: they are of another type or shape, or out of range.
    """
    kind = str(labels.dtype).removeprefix("torch.")
    if soft and labels.is_floating_point() and labels.shape[1:] == (num_classes,):
        if ((labels.sum(1) - 1).abs() < 1e-3).all() and (labels >= 0).all():
            return
        raise UsageError(
            f"the labels are {kind} of shape {tuple(labels.shape)} with rows that do not sum to 1; "
            "expected (N,) class indices, or a probability for each class"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 1:
        change = "labels.argmax(1)" if labels.ndim == 2 else "labels.long()"
        raise UsageError(
            f"the labels are {kind} of shape {tuple(labels.shape)}; expected (N,) int64 class "
            f"indices 0..{num_classes - 1}: try {change}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UsageError(
            f"labels are {low}..{high}, and the network has {num_classes} outputs; they must be "
            f"0..{num_classes - 1}: change the labels or the network's last layer"
        )


def check_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, criterion: nn.Module | None = None
) -> None:
    """Refuse an optimizer that cannot train this network.

    Args:
        model: to be trained.
        optimizer: of its parameters, of all or of some.
        criterion: the loss; it may have parameters to train as well.

    Raises:
        UsageError: all weights are frozen; the optimizer holds none of them, or parameters of
            something else; or its step needs a closure.
    """
    trained = {p for p in model.parameters() if p.requires_grad}
    if not trained:
        raise UsageError(
            "all weights of the network are frozen; set requires_grad to True for those to train, "
            "for example of its last layer"
        )
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not trained.intersection(held):
        raise UsageError(
            "the optimizer holds none of the model's trainable parameters; make it from this "
            "model's parameters()"
        )
    own = set(model.parameters())
    if isinstance(criterion, nn.Module):
        own |= set(criterion.parameters())
    if strange := sum(p not in own for p in held):
        raise UsageError(
            f"{strange} of the optimizer's {len(held)} parameters are not of this model; make it "
            "from this model's parameters()"
        )
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(
            f"the optimizer {type(optimizer).__name__} needs a closure in each step, which this "
            "loop does not give; use another one, such as SGD or Adam"
        )


def check_last_batch(model: nn.Module, loader: Any, images: Tensor) -> None:
    """Refuse a last batch of one image on which batch norm cannot train.

    Args:
        model: on the device of the images; it stays as it is.
        loader: a DataLoader; of others, the sizes are not known.
        images: (N, ...) a batch of it.

    Raises:
        UsageError: the last batch has one image, and the network cannot train on one.
    """
    size = getattr(loader, "batch_size", None)
    if not isinstance(loader, torch.utils.data.DataLoader) or size is None or loader.drop_last:
        return
    try:
        count = len(loader.sampler)
    except TypeError:  # a data set without a length
        return
    if (count - 1) % size == 0 and not _trains_on_one(model, images[:1]):
        raise UsageError(
            f"the last batch has 1 image ({count} in batches of {size}), on which batch norm "
            "cannot train; set drop_last=True or another batch_size in the DataLoader"
        )


def _trains_on_one(model: nn.Module, image: Tensor) -> bool:
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(image)):
            model(image)
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return True


def _cuda_devices(images: Tensor) -> list[torch.device]:
    """Those whose random numbers a network may draw."""
    return [images.device] if images.device.type == "cuda" else []


def _in_words(value: Any) -> str:
    """A batch by its parts."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a tensor {kind} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        parts = ", ".join(f"{name!r}: {_in_words(part)}" for name, part in value.items())
        return f"a dictionary of {parts}"
    if isinstance(value, (tuple, list)) and all(isinstance(x, (str, int, float)) for x in value):
        return f"a {type(value).__name__} of {len(value)} values"
    if isinstance(value, (tuple, list)):
        parts = ", ".join(map(_in_words, value[:5])) + (", ..." if len(value) > 5 else "")
        return f"{len(value)} parts ({parts})"
    return f"a {type(value).__name__}"
