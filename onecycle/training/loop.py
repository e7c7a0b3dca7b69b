"""The helpers of a run: seed, statistics, summary, train and test loops, predictions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onecycle.errors import DivergedError, UsageError
from onecycle.records import EpochRecord, History, Predictions, StepRecord
from onecycle.training.compute import autocast, place
from onecycle.training.meter import Meter, OneProcess, not_saved


class _Objective(nn.Module):
    """Forward pass and loss as one module, to be compiled and distributed as one."""

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(images)
        with torch.no_grad():
            plain = F.cross_entropy(output.float(), labels)
            correct = (output.argmax(1) == labels).sum()
        return self.criterion(output, labels), torch.stack([plain, correct.float()])


def fit(
    model: nn.Module,
    train_loader: DataLoader,
    test_loader: DataLoader | None,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    criterion: nn.Module,
    *,
    epochs: int,
    precision: str = "float32",
    compile_mode: str | None = None,
    group: Any = None,
    checkpoint: Any = None,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, StepRecord, float], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> History:
    """Train, and evaluate after each epoch.

    Args:
        model: (N, 3, 32, 32) -> (N, K) log-probabilities or logits, on its device.
        train_loader: training batches; told each epoch's number, and how many of its batches to
            leave out, by ``set_epoch(epoch, start)`` where it has that.
        test_loader: the images to evaluate on; None: no evaluation.
        optimizer: of the model's parameters.
        scheduler: stepped after every batch but the last, so that it gives
            ``epochs * len(train_loader)`` rates.
        criterion: loss to minimise, of (output, labels): a mean over the batch.
        epochs: 1 or more.
        precision: "float32", "bfloat16" or "float16" (cuda only).
        compile_mode: of ``torch.compile``, for forward pass and loss together; None: not compiled.
        group: the processes that train together, see ``distributed.Group``; None: this one alone.
        checkpoint: restored from at the beginning and saved to, see ``checkpoint.Checkpoint``;
            ``train_loader`` needs ``set_epoch`` then.
        stop: asked after a step whose loss was read and, of a single process, during evaluation;
            True ends the training there. So does a KeyboardInterrupt out of a callback.
        on_step: called with (epoch from 1, step, accuracy of the epoch so far) after each step
            whose loss was read: on cuda after every 49th and an epoch's last, else after each.
        on_epoch: called after each evaluation.

    Returns:
        A record of every step and epoch that is done: fewer than ``epochs`` after a stop. Called
        again with the checkpoint, it goes on from there.

    Raises:
        DivergedError: a loss or a gradient is not finite.
        UsageError: the GPU's memory does not hold a batch; or the arguments do not go together.
    """
    device = next(model.parameters()).device
    group = group or OneProcess()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    objective = group.wrap(_Objective(model, criterion))
    if compile_mode is not None:
        # Two batch shapes, each compiled for itself: the last batch of an epoch is smaller.
        objective = torch.compile(objective, mode=compile_mode, dynamic=False)
    history = History()
    parts = {
        "model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler,
        "history": history,
    }  # fmt: skip
    if checkpoint is not None:
        if not hasattr(train_loader, "set_epoch"):
            raise UsageError(
                "a run that is saved goes on within an epoch, which this train_loader cannot: give "
                "one with set_epoch, as get_loader makes it"
            )
        checkpoint.restore(parts)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_steps = len(train_loader)
    _check_schedule(scheduler, epochs, num_steps)
    meter = Meter(history, device, group, float16=scaler.is_enabled())
    size = None
    try:
        while len(history.epochs) < epochs:
            epoch = len(history.epochs) + 1
            start = len(history.steps) - (epoch - 1) * num_steps
            model.train()
            meter.start()
            for index, (images, labels) in enumerate(_batches(train_loader, epoch, start), start):
                images, labels = place(images, device), place(labels, device)
                size = len(labels) if group.world_size == 1 else train_loader.global_batch(index)
                share = len(labels) / size
                lr = optimizer.param_groups[0]["lr"]

                with autocast(device, precision):
                    loss, measured = objective(images, labels)
                optimizer.zero_grad()
                # A group takes the mean of its gradients; this makes it that of the whole batch.
                scaler.scale(loss * (share * group.world_size)).backward()
                norm = torch.nn.utils.get_total_norm(
                    [p.grad for p in parameters if p.grad is not None]
                )
                scaler.step(optimizer)
                scaler.update()
                last = index == num_steps - 1
                if not (last and epoch == epochs):  # one more would leave the schedule
                    scheduler.step()

                meter.note(lr, size, share, measured, norm)
                if meter.is_full or last:
                    stopping = meter.read(epoch, stop())
                    if on_step is not None:
                        _call(on_step, epoch, history.steps[-1], meter.accuracy)
                    if stopping:
                        raise _Stopped
                    _save(checkpoint, parts)

            group.align(model)
            begun = time.perf_counter()
            tested = _test(model, test_loader, precision, group, stop)
            record = meter.end_epoch(*tested, time.perf_counter() - begun)
            if on_epoch is not None:
                _call(on_epoch, record)
            done = len(history.epochs) == epochs
            saved = _save(checkpoint, parts, epoch_end=True, now=done)
            if group.world_size == 1 and stop():  # it came meanwhile, perhaps during the save
                if not saved:
                    _save(checkpoint, parts, now=True)
                break
    except _Stopped:
        _save(checkpoint, parts, now=True)
    except torch.OutOfMemoryError as error:
        batch = "a batch" if size is None else f"batches of {size}"
        raise UsageError(
            f"the memory of {device} does not hold {batch}; lower batch_size"
        ) from error
    return history


def _check_schedule(scheduler, epochs: int, num_steps: int) -> None:
    total = getattr(scheduler, "total_steps", epochs * num_steps)
    if not num_steps or total != epochs * num_steps:
        raise UsageError(
            f"{epochs} epochs of {num_steps} batches are {epochs * num_steps} steps, and the "
            f"schedule has {total}: make it with as many, of one batch or more an epoch"
        )


class _Stopped(Exception):
    """The training is to end here, at a place from which it can go on."""


def _save(checkpoint, parts: dict[str, Any], **when: bool) -> bool:
    try:
        return checkpoint is not None and bool(checkpoint.save(parts, **when))
    except DivergedError as error:  # it knows the value, not the place
        raise not_saved(parts["history"], error) from error


def _call(callback: Callable, *args) -> None:
    try:
        callback(*args)
    except KeyboardInterrupt:
        raise _Stopped from None


def _batches(loader, epoch: int, start: int):
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch, start)
    return loader if start < len(loader) else ()


def _test(model, loader, precision, group, stop) -> tuple[float | None, float | None]:
    if loader is None:
        return None, None
    try:
        return _loss_and_accuracy(
            *_log_probabilities(model, loader, precision, group=group, stop=stop)
        )
    except KeyboardInterrupt:
        raise _Stopped from None










@torch.no_grad()
def _log_probabilities(
    model, loader, precision: str, *, mirrored: bool = False, group=None, stop=lambda: False
) -> tuple[Tensor, Tensor]:
    """(V, N, K) float32 log-probabilities and (N,) labels of all images, on the CPU.

    V is 1, or 2 with the mirror images.
    """
    device, group = next(model.parameters()).device, group or OneProcess()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    outputs, targets = [], []
    try:
        for images, labels in loader:
            images = place(images, device)
            views = (images, images.flip(3)) if mirrored else (images,)
            with autocast(device, precision):
                outputs.append(torch.cat([model(view).float() for view in views], dim=1))
            targets.append(labels)
            if group.world_size == 1 and stop():
                raise _Stopped
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not outputs:  # a process of a group may have no share
        outputs, targets = [torch.empty(0, 1 + mirrored)], [torch.empty(0, dtype=torch.int64)]
    outputs, targets = torch.cat(outputs), torch.cat(targets)
    outputs, targets = group.gather(outputs, targets, loader)
    views = torch.stack(outputs.cpu().chunk(1 + mirrored, dim=1))
    return F.log_softmax(views, dim=2), targets.cpu()


def _loss_and_accuracy(views: Tensor, labels: Tensor) -> tuple[float, float]:
    if not len(labels):
        raise UsageError("there is no image to evaluate on: the loader gives no batch")
    log_probabilities = views[0].double()
    loss = F.nll_loss(log_probabilities, labels).item()
    return loss, (log_probabilities.argmax(1) == labels).double().mean().item()


def evaluate(
    model: nn.Module, loader: DataLoader, *, precision: str = "float32"
) -> tuple[float, float]:
    """Mean cross-entropy per image, in nats, and accuracy, 0..1, over all images of ``loader``."""
    return _loss_and_accuracy(*_log_probabilities(model, loader, precision))


def predict(
    model: nn.Module,
    loader: DataLoader,
    *,
    precision: str = "float32",
    mirrored: bool = False,
    group: Any = None,
) -> Predictions:
    """Probabilities of every class for all images of ``loader``, in its order.

    Args:
        model: on its device; left in the mode it is in.
        loader: batches of images and labels, in a fixed order.
        precision: "float32", "bfloat16" or "float16" (cuda only).
        mirrored: look at the mirror images too, see ``Predictions.mirrored``.
        group: the processes among which ``loader`` shares the images, see ``distributed.Group``.
    """
    views, labels = _log_probabilities(model, loader, precision, mirrored=mirrored, group=group)
    both = F.softmax(views.mean(0), dim=1).numpy() if mirrored else None
    return Predictions(views[0].exp().numpy(), labels.numpy(), both)
