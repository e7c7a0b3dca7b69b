"""Training, evaluation and prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onecycle.errors import DivergedError, UsageError
from onecycle.modules import check_optimizer, eval_mode
from onecycle.records import EpochRecord, History, Predictions, StepRecord
from onecycle.training.checkpoint import Checkpoint
from onecycle.training.compute import Compute
from onecycle.training.meter import Meter, not_saved
from onecycle.training.step import Step


class Callback(Protocol):
    """What :func:`fit` calls; either method may be missing. A KeyboardInterrupt stops the training."""

    def on_step(self, epoch: int, step: StepRecord, accuracy: float) -> None:
        """Called after each step whose loss was read: on cuda after every 49th step and the last of
        an epoch, elsewhere after every step.

        Args:
            epoch: from 1.
            step: its number, learning rate and loss.
            accuracy: training accuracy of the epoch so far, 0..1.
        """

    def on_epoch(self, record: EpochRecord) -> None:
        """Called after each epoch and its evaluation."""


def never() -> bool:
    """Always False: a training that nothing stops."""
    return False


def fit(
    model: nn.Module,
    train_loader: DataLoader,
    test_loader: DataLoader | None,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    criterion: nn.Module,
    *,
    epochs: int,
    compute: Compute | None = None,
    checkpoint: Checkpoint | None = None,
    callbacks: Sequence[Callback] = (),
    stop: Callable[[], bool] = never,
) -> History:
    """Train, and evaluate after each epoch.

    Args:
        model: (N, 3, H, W) -> (N, K) log-probabilities or logits, on its device.
        train_loader: batches of images and labels. If it has ``set_epoch(epoch, start)``, that is
            called before each epoch with its number from 1 and how many batches to skip.
        test_loader: the images to evaluate on; None: no evaluation.
        optimizer: of the model's parameters.
        scheduler: stepped after every batch but the last, so it gives
            ``epochs * len(train_loader)`` learning rates.
        criterion: loss to minimise, of (output, labels): a mean over the batch.
        epochs: passes over the training images, 1 or more.
        compute: device, precision, compilation and group; None: the model's device, float32.
        checkpoint: restored from at the beginning and saved to; ``train_loader`` needs
            ``set_epoch`` then.
        callbacks: objects with ``on_step(epoch, step, accuracy)``, ``on_epoch(record)`` or both,
            see :class:`Callback`.
        stop: asked after each step whose loss was read and, in a single process, during evaluation;
            True ends the training there, and so does a KeyboardInterrupt out of a callback.

    Returns:
        A record of every step and epoch that is done: fewer than ``epochs`` after a stop. Called
        again with the checkpoint, ``fit`` resumes there.

    Raises:
        DivergedError: a loss or a gradient is not finite.
        UsageError: the arguments do not fit together, or a batch does not fit the GPU's memory.
    """
    compute = _compute_for(model, compute)
    _check_arguments(model, train_loader, optimizer, scheduler, checkpoint, callbacks)
    step = Step(model, criterion, optimizer, scheduler, compute)
    training = _Training(step, train_loader, test_loader, epochs, checkpoint, callbacks, stop)
    if checkpoint is not None:
        checkpoint.restore(training.parts)
    _check_schedule(scheduler, epochs, len(train_loader))
    training.run()
    return training.history


def _check_arguments(model, train_loader, optimizer, scheduler, checkpoint, callbacks) -> None:
    if scheduler is None:
        raise UsageError("scheduler is None; give one, for example one_cycle(optimizer, ...)")
    check_optimizer(model, optimizer)
    if checkpoint is not None and not hasattr(train_loader, "set_epoch"):
        raise UsageError(
            "a run with a checkpoint resumes within an epoch, which this train_loader cannot do; "
            "give one with set_epoch, such as get_loader makes"
        )
    for callback in callbacks:
        if not (hasattr(callback, "on_step") or hasattr(callback, "on_epoch")):
            raise UsageError(f"the callback {callback!r} has neither on_step nor on_epoch")


def _check_schedule(scheduler, epochs: int, num_steps: int) -> None:
    total = getattr(scheduler, "total_steps", epochs * num_steps)
    if not num_steps or total != epochs * num_steps:
        raise UsageError(
            f"{epochs} epochs of {num_steps} batches are {epochs * num_steps} steps, and the "
            f"schedule has {total}; make both the same, with one batch or more per epoch"
        )


class _Stopped(Exception):
    """The training ends here, at a place where it can resume."""


class _Training:
    """A training in progress: what :func:`fit` gets, and what it has measured so far."""

    def __init__(
        self,
        step: Step,
        train_loader: Any,
        test_loader: Any,
        epochs: int,
        checkpoint: Any,
        callbacks: Sequence[Any],
        stop: Callable[[], bool],
    ) -> None:
        self.step = step
        self.compute = step.compute
        self.train_loader = train_loader
        self.test_loader = test_loader
        self.epochs = epochs
        self.checkpoint = checkpoint
        self.callbacks = callbacks
        self.stop = stop
        self.history = History()
        self.meter = Meter(self.history, self.compute)
        self.parts = {**step.parts, "history": self.history}
        self.batch_size: int | None = None

    def run(self) -> None:
        """Train to the end, or until a stop."""
        try:
            while len(self.history.epochs) < self.epochs:
                self._train_epoch()
                if self._end_epoch():
                    break
        except _Stopped:
            self._save(now=True)
        except torch.OutOfMemoryError as error:
            batch = "a batch" if self.batch_size is None else f"batches of {self.batch_size}"
            raise UsageError(
                f"the memory of {self.compute.device} does not hold {batch}; lower batch_size"
            ) from error

    def _train_epoch(self) -> None:
        """The steps of an epoch, or the rest of them."""
        num_steps, group = len(self.train_loader), self.compute.group
        epoch = len(self.history.epochs) + 1
        start = len(self.history.steps) - (epoch - 1) * num_steps
        self.step.model.train()
        self.meter.start()
        for index, batch in enumerate(self._batches(epoch, start), start):
            images, labels = (self.compute.place(part) for part in batch)
            is_alone = group.world_size == 1
            size = len(labels) if is_alone else self.train_loader.global_batch(index)
            self.batch_size = size
            share, lr = len(labels) / size, self.step.lr
            is_last = index == num_steps - 1
            measured, norm = self.step(
                images, labels, share=share, is_last=is_last and epoch == self.epochs
            )
            self.meter.note(lr, size, share, measured, norm)
            if self.meter.is_full or is_last:
                self._read(epoch)

    def _batches(self, epoch: int, start: int) -> Iterable[tuple[Tensor, Tensor]]:
        if hasattr(self.train_loader, "set_epoch"):
            self.train_loader.set_epoch(epoch, start)
        return self.train_loader if start < len(self.train_loader) else ()

    def _read(self, epoch: int) -> None:
        """Read the measurements; call, stop and save by them."""
        is_stopping = self.meter.read(epoch, self.stop())
        self._call("on_step", epoch, self.history.steps[-1], self.meter.accuracy)
        if is_stopping:
            raise _Stopped
        self._save()

    def _end_epoch(self) -> bool:
        """Evaluate, record and save; whether the training stops here."""
        self.compute.group.align(self.step.model)
        begin = time.perf_counter()
        loss, accuracy = self._evaluate()
        record = self.meter.end_epoch(loss, accuracy, time.perf_counter() - begin)
        self._call("on_epoch", record)
        is_done = len(self.history.epochs) == self.epochs
        is_saved = self._save(epoch_end=True, now=is_done)
        # The wish to stop may have come in a callback or during the save.
        is_stopping = self.compute.group.world_size == 1 and self.stop()
        if is_stopping and not is_saved:
            self._save(now=True)
        return is_stopping

    def _evaluate(self) -> tuple[float | None, float | None]:
        if self.test_loader is None:
            return None, None
        try:
            return _loss_and_accuracy(
                *_log_probabilities(self.step.model, self.test_loader, self.compute, stop=self.stop)
            )
        except KeyboardInterrupt:
            raise _Stopped from None

    def _save(self, **when: bool) -> bool:
        """Whether it was saved."""
        try:
            return self.checkpoint is not None and bool(self.checkpoint.save(self.parts, **when))
        except DivergedError as error:  # it names the value; add the step
            raise not_saved(self.history, error) from error

    def _call(self, name: str, *values: Any) -> None:
        try:
            for callback in self.callbacks:
                if hasattr(callback, name):
                    getattr(callback, name)(*values)
        except KeyboardInterrupt:
            raise _Stopped from None


def evaluate(
    model: nn.Module, loader: DataLoader, *, compute: Compute | None = None
) -> tuple[float, float]:
    """Mean loss and accuracy of a network.

    Args:
        model: on its device; it keeps its mode.
        loader: batches of images and labels.
        compute: device, precision and group; None: the model's device, float32.

    Returns:
        Mean cross-entropy per image, in nats, and accuracy, 0..1, over all images of ``loader``.

    Raises:
        UsageError: the loader has no image.
    """
    compute = _compute_for(model, compute)
    return _loss_and_accuracy(*_log_probabilities(model, loader, compute))


def predict(
    model: nn.Module,
    loader: DataLoader,
    *,
    compute: Compute | None = None,
    mirrored: bool = False,
) -> Predictions:
    """Probabilities of every class for all images.

    Args:
        model: (N, 3, H, W) -> (N, K) log-probabilities or logits, on its device; it keeps its mode.
        loader: batches of images and labels, in a fixed order.
        compute: device, precision and the group that shares the images; None: the model's device,
            float32.
        mirrored: predict from each image and its mirror image as well (flip TTA), see
            ``Predictions.mirrored``.

    Returns:
        Probabilities, (N, K), and labels, (N,), in the order of ``loader``.
    """
    compute = _compute_for(model, compute)
    views, labels = _log_probabilities(model, loader, compute, mirrored=mirrored)
    both = F.softmax(views.mean(0), dim=1).numpy() if mirrored else None
    return Predictions(views[0].exp().numpy(), labels.numpy(), both)


def _compute_for(model: nn.Module, compute: Compute | None) -> Compute:
    own = Compute.of(model)
    if compute is not None and compute.device.type != own.device.type:
        raise UsageError(
            f"the model is on {own.device} and compute.device is {compute.device}; "
            "call compute.place_model(model) before you make the optimizer"
        )
    return compute or own


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
    group, outputs, targets = compute.group, [], []
    with eval_mode(model):
        for images, labels in loader:
            images = compute.place(images)
            views = (images, images.flip(3)) if mirrored else (images,)
            with compute.autocast():
                outputs.append(torch.cat([model(view).float() for view in views], dim=1))
            targets.append(labels)
            if group.world_size == 1 and stop():
                raise _Stopped
    if not outputs:  # a process of a group may have no share
        outputs, targets = [torch.empty(0, 1 + mirrored)], [torch.empty(0, dtype=torch.int64)]
    outputs, targets = group.gather(torch.cat(outputs), torch.cat(targets), loader)
    views = torch.stack(outputs.cpu().chunk(1 + mirrored, dim=1))
    return F.log_softmax(views, dim=2), targets.cpu()


def _loss_and_accuracy(views: Tensor, labels: Tensor) -> tuple[float, float]:
    if not len(labels):
        raise UsageError("there is no image to evaluate on: the loader gives no batch")
    log_probabilities = views[0].double()
    loss = F.nll_loss(log_probabilities, labels).item()
    return loss, (log_probabilities.argmax(1) == labels).double().mean().item()
