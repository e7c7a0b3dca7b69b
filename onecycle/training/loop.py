"""The training loop, and what a network makes of images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from onecycle.errors import DivergedError, UsageError
from onecycle.modules import eval_mode
from onecycle.records import History, Predictions
from onecycle.training.checkpoint import Checkpoint
from onecycle.training.compute import Compute
from onecycle.training.meter import Meter, not_saved
from onecycle.training.step import Step


def never() -> bool:
    """No wish to stop."""
    return False


def fit(
    model: nn.Module,
    train_loader: Iterable,
    test_loader: Iterable | None,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    criterion: nn.Module,
    *,
    epochs: int,
    compute: Compute | None = None,
    checkpoint: Checkpoint | None = None,
    callbacks: Sequence[Any] = (),
    stop: Callable[[], bool] = never,
) -> History:
    """Train, and evaluate after each epoch.

    Args:
        model: (N, C, H, W) to (N, K) log-probabilities or logits, on its device.
        train_loader: training batches; if it has ``set_epoch(epoch, start)``, it is told each
            epoch's number and how many batches of it to leave out.
        test_loader: the images to evaluate on; None: no evaluation.
        optimizer: of the model's parameters.
        scheduler: stepped after every batch but the last, so that it gives
            ``epochs * len(train_loader)`` learning rates.
        criterion: loss of (output, labels), a mean over the batch.
        epochs: 1 or more.
        compute: precision, compiler and processes; None: float32 in this process.
        checkpoint: restored from at the beginning and saved to; ``train_loader`` needs
            ``set_epoch`` then.
        callbacks: objects with either or both of these methods. ``on_step(epoch, step, accuracy)``
            is called with the epoch (from 1), a ``StepRecord`` and the accuracy of the epoch so
            far, after each step whose loss was read: on cuda after every 49th step and the last
            one of an epoch, elsewhere after each. ``on_epoch(record)`` is called with an
            ``EpochRecord`` after each evaluation.
        stop: asked after a step whose loss was read and, in a single process, during evaluation;
            True ends the training there. So does a KeyboardInterrupt out of a callback.

    Returns:
        A record of every step and epoch that is done: fewer than ``epochs`` after a stop. Called
        again with the checkpoint, the training resumes.

    Raises:
        DivergedError: a loss or a gradient is not finite.
        UsageError: the arguments do not go together; or the GPU's memory does not hold a batch.
    """
    compute = compute or Compute.of(model)
    _check_parts(model, train_loader, optimizer, scheduler, checkpoint)
    step = Step(model, criterion, optimizer, compute)
    history = History()
    parts = {
        "model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": step.scaler,
        "history": history,
    }  # fmt: skip
    if checkpoint is not None:
        checkpoint.restore(parts)
    _check_schedule(scheduler, epochs, len(train_loader))
    training = _Training(
        step, parts, epochs, train_loader, test_loader, compute, checkpoint, callbacks, stop,
        Meter(history, compute.device, compute.group, float16=step.scaler.is_enabled()),
    )  # fmt: skip
    training.run()
    return history


@dataclass
class _Training:
    """A training under way."""

    step: Step
    parts: dict[str, Any]
    epochs: int
    train_loader: Any
    test_loader: Any
    compute: Compute
    checkpoint: Checkpoint | None
    callbacks: Sequence[Any]
    stop: Callable[[], bool]
    meter: Meter
    size: int | None = None
    """Images in the batch of the last step, over all processes."""

    def run(self) -> None:
        """All epochs that are left, unless something stops the training."""
        history = self.parts["history"]
        try:
            while len(history.epochs) < self.epochs:
                self.train_epoch()
                if self.end_epoch():
                    break
        except _Stopped:
            self.save(now=True)
        except torch.OutOfMemoryError as error:
            batch = "a batch" if self.size is None else f"batches of {self.size}"
            raise UsageError(
                f"the memory of {self.compute.device} does not hold {batch}; lower batch_size"
            ) from error

    def train_epoch(self) -> None:
        """The rest of the epoch under way."""
        history, meter, scheduler = self.parts["history"], self.meter, self.parts["scheduler"]
        num_steps, group = len(self.train_loader), self.compute.group
        epoch = len(history.epochs) + 1
        start = len(history.steps) - (epoch - 1) * num_steps
        self.parts["model"].train()
        meter.start()
        for index, batch in enumerate(_batches(self.train_loader, epoch, start), start):
            images, labels = map(self.compute.place, batch)
            alone = group.world_size == 1
            self.size = len(labels) if alone else self.train_loader.global_batch(index)
            share = len(labels) / self.size
            lr = self.parts["optimizer"].param_groups[0]["lr"]
            measured, norm = self.step(images, labels, share)
            is_last = index == num_steps - 1
            if not (is_last and epoch == self.epochs):  # one more would leave the schedule
                scheduler.step()
            meter.note(lr, self.size, share, measured, norm)
            if meter.is_full or is_last:
                stopping = meter.read(epoch, self.stop())
                self.call("on_step", epoch, history.steps[-1], meter.accuracy)
                if stopping:
                    raise _Stopped
                self.save()

    def end_epoch(self) -> bool:
        """Evaluate, record and save; whether the training is to stop here."""
        model, history, group = self.parts["model"], self.parts["history"], self.compute.group
        group.align(model)
        begin = time.perf_counter()
        loss, accuracy = None, None
        if self.test_loader is not None:
            with _stopped_by_keyboard():
                loss, accuracy = _loss_and_accuracy(
                    *_log_probabilities(model, self.test_loader, self.compute, stop=self.stop)
                )
        record = self.meter.end_epoch(loss, accuracy, time.perf_counter() - begin)
        self.call("on_epoch", record)
        saved = self.save(epoch_end=True, now=len(history.epochs) == self.epochs)
        stopping = group.world_size == 1 and self.stop()  # it came meanwhile, perhaps in the save
        if stopping and not saved:
            self.save(now=True)
        return stopping

    def call(self, name: str, *values: Any) -> None:
        """Call a method of all callbacks that have it."""
        with _stopped_by_keyboard():
            for callback in self.callbacks:
                if hasattr(callback, name):
                    getattr(callback, name)(*values)

    def save(self, **when: bool) -> bool:
        """Save if there is a checkpoint and it is time; whether it was saved."""
        try:
            return self.checkpoint is not None and self.checkpoint.save(self.parts, **when)
        except DivergedError as error:  # it knows the value, not the place
            raise not_saved(self.parts["history"], error) from error


class _Stopped(Exception):
    """The training is to end here, at a place from which it can resume."""


@contextlib.contextmanager
def _stopped_by_keyboard() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise _Stopped from None


def _check_parts(model, train_loader, optimizer, scheduler, checkpoint) -> None:
    if scheduler is None:
        raise UsageError("scheduler is None; give one, such as one_cycle(optimizer, ...)")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise UsageError(
            "the optimizer has no parameter of this model, and would train another one; "
            "make the optimizer again after the model"
        )
    if checkpoint is not None and not hasattr(train_loader, "set_epoch"):
        raise UsageError(
            "a run that is saved resumes within an epoch, which this train_loader cannot: give "
            "one with set_epoch, as get_loader makes it"
        )


def _check_schedule(scheduler: LRScheduler, epochs: int, num_steps: int) -> None:
    total = getattr(scheduler, "total_steps", epochs * num_steps)
    if not num_steps or total != epochs * num_steps:
        raise UsageError(
            f"{epochs} epochs of {num_steps} batches are {epochs * num_steps} steps, and the "
            f"schedule has {total}: make it with as many, of one batch or more per epoch"
        )


def _batches(loader: Any, epoch: int, start: int) -> Iterable:
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch, start)
    return loader if start < len(loader) else ()


@torch.no_grad()
def _log_probabilities(
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
    outputs, targets = [], []
    with eval_mode(model):
        for images, labels in loader:
            images = compute.place(images)
            views = (images, images.flip(3)) if mirrored else (images,)
            with compute.autocast():
                outputs.append(torch.cat([model(view).float() for view in views], dim=1))
            targets.append(labels)
            if compute.group.world_size == 1 and stop():
                raise _Stopped
    if not outputs:  # a process of a group may have no share
        outputs, targets = [torch.empty(0, 1 + mirrored)], [torch.empty(0, dtype=torch.int64)]
    outputs, targets = compute.group.gather(torch.cat(outputs), torch.cat(targets), loader)
    views = torch.stack(outputs.cpu().chunk(1 + mirrored, dim=1))
    return F.log_softmax(views, dim=2), targets.cpu()


def _loss_and_accuracy(views: Tensor, labels: Tensor) -> tuple[float, float]:
    if not len(labels):
        raise UsageError("there is no image to evaluate on: the loader gives no batch")
    log_probabilities = views[0].double()
    loss = F.nll_loss(log_probabilities, labels).item()
    return loss, (log_probabilities.argmax(1) == labels).double().mean().item()


def evaluate(
    model: nn.Module, loader: Iterable, *, compute: Compute | None = None
) -> tuple[float, float]:
    """Mean cross-entropy per image, in nats, and accuracy, 0..1, over all images of ``loader``.

    Args:
        model: on its device; left in the mode it is in.
        loader: batches of images and labels.
        compute: precision and processes; None: float32 in this process.
    """
    return _loss_and_accuracy(*_log_probabilities(model, loader, compute or Compute.of(model)))


def predict(
    model: nn.Module, loader: Iterable, *, compute: Compute | None = None, mirrored: bool = False
) -> Predictions:
    """Probabilities of every class for all images of ``loader``, in its order.

    Args:
        model: on its device; left in the mode it is in.
        loader: batches of images and labels, in a fixed order.
        compute: precision and processes; None: float32 in this process.
        mirrored: look at the mirror images too, see ``Predictions.mirrored``.
    """
    compute = compute or Compute.of(model)
    views, labels = _log_probabilities(model, loader, compute, mirrored=mirrored)
    both = F.softmax(views.mean(0), dim=1).numpy() if mirrored else None
    return Predictions(views[0].exp().numpy(), labels.numpy(), both)
