"""What a network makes of all images of a loader: loss, accuracy, probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onecycle.checks import as_pair, check_finite, check_labels
from onecycle.errors import UsageError
from onecycle.modules import eval_mode
from onecycle.outputs import Classifier
from onecycle.records import Predictions
from onecycle.training.compute import Compute


def never() -> bool:
    """Always False: a training that nothing stops."""
    return False


class Stopped(Exception):
    """The training ends here, at a place where it can resume."""


def evaluate(
    model: nn.Module, loader: DataLoader, *, compute: Compute | None = None
) -> tuple[float, float]:
    """Mean loss and accuracy of a network.

    Args:
        model: see :func:`predict`.
        loader: batches of images and labels.
        compute: device, precision and group; None: the model's device, float32.

    Returns:
        Mean cross-entropy per image, in nats, and accuracy, 0..1, over all images of ``loader``.

    Raises:
        DataError: an image of the first batch is not finite.
        UsageError: the loader has no image, the network does not take its images, or the labels are
            not its classes.
    """
    compute = compute_for(model, compute)
    return loss_and_accuracy(*log_probabilities(model, loader, compute))


def predict(
    model: nn.Module,
    loader: DataLoader,
    *,
    compute: Compute | None = None,
    mirrored: bool = False,
) -> Predictions:
    """Probabilities of every class for all images.

    Args:
        model: (N, 3, H, W) -> (N, K) logits, log-probabilities or probabilities, or a dictionary or
            an object with ``logits``; on its device; it keeps its mode.
        loader: batches of images and labels, in a fixed order.
        compute: device, precision and the group that shares the images; None: the model's device,
            float32.
        mirrored: predict from each image and its mirror image as well (flip TTA), see
            ``Predictions.mirrored``.

    Returns:
        Probabilities, (N, K), and labels, (N,), in the order of ``loader``.

    Raises:
        DataError: an image of the first batch is not finite.
        UsageError: the network does not take the images, or gives something else.
    """
    compute = compute_for(model, compute)
    views, labels = log_probabilities(model, loader, compute, mirrored=mirrored)
    both = F.softmax(views.mean(0), dim=1).numpy() if mirrored else None
    return Predictions(views[0].exp().numpy(), labels.numpy(), both)


def compute_for(model: nn.Module, compute: Compute | None) -> Compute:
    """What was given, or the model's device in float32.

    Raises:
        UsageError: the model is on another device.
    """
    own = Compute.of(model)
    if compute is not None and compute.device.type != own.device.type:
        raise UsageError(
            f"the model is on {own.device} and compute.device is {compute.device}; "
            "call compute.place_model(model) before you make the optimizer"
        )
    return compute or own


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    loader: Any,
    compute: Compute,
    *,
    mirrored: bool = False,
    stop: Callable[[], bool] = never,
) -> tuple[Tensor, Tensor]:
    """(V, N, K) float32 log-probabilities and (N,) labels of all images, on the CPU.

    V is 1, or 2 with the mirror images.
    """
    group, outputs, targets = compute.group, [], []
    scores_of = Classifier(model)
    with eval_mode(model):
        for batch in loader:
            images, labels = as_pair(batch)
            images = compute.place(images)
            if not outputs:
                check_finite(images)
            views = (images, images.flip(3)) if mirrored else (images,)
            with compute.autocast():
                outputs.append(torch.cat([scores_of(view) for view in views], dim=1))
            targets.append(labels)
            if group.world_size == 1 and stop():
                raise Stopped
    if not outputs:  # a process of a group may have no share
        outputs, targets = [torch.empty(0, 1 + mirrored)], [torch.empty(0, dtype=torch.int64)]
    outputs, targets = group.gather(torch.cat(outputs), torch.cat(targets), loader)
    views = torch.stack(outputs.cpu().chunk(1 + mirrored, dim=1))
    return F.log_softmax(views, dim=2), targets.cpu()


def loss_and_accuracy(views: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy, 0..1, of the first view."""
    if not len(labels):
        raise UsageError("there is no image to evaluate on: the loader gives no batch")
    check_labels(labels, views.shape[2])
    scores = views[0].double()
    loss = F.nll_loss(scores, labels).item()
    return loss, (scores.argmax(1) == labels).double().mean().item()
