"""The helpers of a run: seed, statistics, summary, train and test loops, predictions."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchsummary import summary

from errors import DivergedError


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch in plain numbers. Losses are cross-entropies without label smoothing."""

    epoch: int
    """From 1."""
    lr: float
    """The rate used at the epoch's last step."""
    train_loss: float
    """Mean over the images as they were trained on, in nats."""
    train_accuracy: float
    """0..1, over the images as they were trained on."""
    test_loss: float
    """Mean over the test images, in nats."""
    test_accuracy: float
    """0..1."""
    train_seconds: float
    test_seconds: float


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step: its number from 0, the rate it used, the batch's mean loss."""

    step: int
    lr: float
    loss: float


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a network says of N images."""

    probabilities: np.ndarray
    """(N, K) float32, rows sum to 1."""
    labels: np.ndarray
    """(N,) int64 true classes."""

    @property
    def predicted(self) -> np.ndarray:
        """(N,) int64 most probable classes."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """The share of images whose most probable class is the true one, 0..1."""
        return float((self.predicted == self.labels).mean())


def set_seed(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (on all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_stats(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels.

    Args:
        images: (N, H, W, 3) uint8.

    Returns:
        Two triples, 0..1.
    """
    # From histograms: exact, and without a float copy of all images.
    levels = np.arange(256) / 255
    shares = [
        np.bincount(images[..., c].ravel(), minlength=256) / images[..., c].size for c in range(3)
    ]
    means = [share @ levels for share in shares]
    stds = [math.sqrt(share @ (levels - mean) ** 2) for share, mean in zip(shares, means)]
    return tuple(float(mean) for mean in means), tuple(stds)


def model_summary(model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> str:
    """torchsummary's table of the layers. The model and the random numbers stay as they are.

    Args:
        model: on any device.
        input_size: (C, H, W) of one image.
    """
    # torchsummary runs a batch in the mode it finds, which would move BN's statistics.
    twin = copy.deepcopy(model).cpu().float().eval()
    text = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(text):
        summary(twin, input_size, device="cpu")
    return text.getvalue().strip("\n")


def get_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Adam:
    """Adam with decoupled decay of the weights; biases and BN are not decayed.

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2017).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, lr=lr, betas=betas, decoupled_weight_decay=True)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to its device, in the memory format that is fastest there."""
    return model.to(device, memory_format=_memory_format(device))


def _memory_format(device: torch.device) -> torch.memory_format:
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


@dataclass(frozen=True, slots=True)
class History:
    """Everything that a training measured."""

    epochs: list[EpochRecord]
    steps: list[StepRecord]


def fit(
    model: nn.Module,
    train_loader: DataLoader,
    test_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    criterion: nn.Module,
    *,
    epochs: int,
    precision: str = "float32",
    on_step: Callable[[int, StepRecord, float], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> History:
    """Train, and evaluate after each epoch.

    Args:
        model: (N, 3, 32, 32) -> (N, K) log-probabilities or logits, on its device.
        train_loader: training batches; told each epoch's number where it has ``set_epoch``.
        test_loader: the images to evaluate on.
        optimizer: of the model's parameters.
        scheduler: stepped after every batch but the last, so that it gives
            ``epochs * len(train_loader)`` rates.
        criterion: loss to minimise, of (output, labels).
        epochs: 1 or more.
        precision: "float32", "bfloat16" or "float16" (cuda only).
        on_step: called with (epoch from 1, step, accuracy of the epoch so far) after each step
            whose loss was read: on cuda after every 20th and an epoch's last, else after each.
        on_epoch: called after each evaluation.

    Returns:
        A record of every epoch and of every step.

    Raises:
        DivergedError: the loss is not finite.
    """
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    history = History([], [])
    for epoch in range(1, epochs + 1):
        if hasattr(train_loader, "set_epoch"):
            train_loader.set_epoch(epoch)
        start = time.perf_counter()
        train_loss, train_accuracy, steps = _train_epoch(
            model, train_loader, optimizer, scheduler, criterion, scaler,
            epoch=epoch, epochs=epochs, precision=precision, on_step=on_step,
        )  # fmt: skip
        middle = time.perf_counter()
        test_loss, test_accuracy = evaluate(model, test_loader, precision=precision)
        if not math.isfinite(test_loss):  # the very last step can break what was finite before
            raise _diverged(epoch, replace(steps[-1], loss=test_loss), steps)
        record = EpochRecord(
            epoch=epoch,
            lr=steps[-1].lr,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            train_seconds=middle - start,
            test_seconds=time.perf_counter() - middle,
        )
        history.epochs.append(record)
        history.steps.extend(steps)
        if on_epoch is not None:
            on_epoch(record)
    return history


def _train_epoch(
    model, loader, optimizer, scheduler, criterion, scaler, *, epoch, epochs, precision, on_step
) -> tuple[float, float, list[StepRecord]]:
    """One pass; the mean loss per image, the accuracy, a record of each step."""
    model.train()
    device = next(model.parameters()).device
    read_every = 20 if device.type == "cuda" else 1  # reading waits for the GPU
    num_steps = len(loader)
    losses = torch.zeros(num_steps, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    rates, sizes, records = [], [], []
    for index, (images, labels) in enumerate(loader):
        images, labels = (
            _place(images, device),
            labels.to(device, non_blocking=_in_background(device)),
        )
        rates.append(optimizer.param_groups[0]["lr"])

        with torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32"):
            output = model(images)
            loss = criterion(output, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        last = index == num_steps - 1
        if not (last and epoch == epochs):  # a step beyond the end would leave the schedule
            scheduler.step()

        with torch.no_grad():
            losses[index] = F.cross_entropy(output, labels)
            correct += (output.argmax(1) == labels).sum()
        sizes.append(len(labels))
        if last or (index + 1) % read_every == 0:
            for i, value in enumerate(losses[len(records) : index + 1].tolist(), len(records)):
                step = StepRecord(step=(epoch - 1) * num_steps + i, lr=rates[i], loss=value)
                if not math.isfinite(value):
                    raise _diverged(epoch, step, records)
                records.append(step)
            if on_step is not None:
                on_step(epoch, records[-1], correct.item() / sum(sizes))
    mean_loss = sum(step.loss * size for step, size in zip(records, sizes)) / sum(sizes)
    return mean_loss, correct.item() / sum(sizes), records


def _diverged(epoch: int, step: StepRecord, before: list[StepRecord]) -> DivergedError:
    last = ", ".join(f"{record.loss:.3g}" for record in before[-3:]) or "none"
    return DivergedError(
        f"the loss is {step.loss} in epoch {epoch}, step {step.step}, at rate {step.lr:.3g}; "
        f"the losses before: {last}; lower lr_max"
    )


def _place(images: Tensor, device: torch.device) -> Tensor:
    return images.to(
        device, non_blocking=_in_background(device), memory_format=_memory_format(device)
    )


def _in_background(device: torch.device) -> bool:
    # On mps such a copy can read memory that has been given away meanwhile.
    return device.type == "cuda"


@torch.no_grad()
def _log_probabilities(
    model: nn.Module, loader: DataLoader, precision: str
) -> tuple[Tensor, Tensor]:
    """(N, K) float32 log-probabilities and (N,) labels of all images, on the CPU."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    outputs, targets = [], []
    for images, labels in loader:
        with torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32"):
            outputs.append(model(_place(images, device)))
        targets.append(labels)
    model.train(was_training)
    return F.log_softmax(torch.cat(outputs).float(), dim=1).cpu(), torch.cat(targets)


def evaluate(
    model: nn.Module, loader: DataLoader, *, precision: str = "float32"
) -> tuple[float, float]:
    """Mean cross-entropy per image, in nats, and accuracy, 0..1, over all images of ``loader``."""
    log_probabilities, labels = _log_probabilities(model, loader, precision)
    loss = F.nll_loss(log_probabilities.double(), labels).item()
    return loss, (log_probabilities.argmax(1) == labels).double().mean().item()


def predict(model: nn.Module, loader: DataLoader, *, precision: str = "float32") -> Predictions:
    """Probabilities of every class for all images of ``loader``, in its order."""
    log_probabilities, labels = _log_probabilities(model, loader, precision)
    return Predictions(log_probabilities.exp().numpy(), labels.numpy())
