"""The training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onecycle.checks import (
    as_pair,
    check_first_batch,
    check_last_batch,
    check_optimizer,
    names_loss,
)
from onecycle.errors import DivergedError, RunError, UsageError
from onecycle.outputs import names_images
from onecycle.records import EpochRecord, History, StepRecord
from onecycle.training.averaging import KeptWeights
from onecycle.training.checkpoint import Checkpoint
from onecycle.training.checkpoint.consistency import contradictions
from onecycle.training.compute import Compute
from onecycle.training.inference import (
    Stopped,
    compute_for,
    log_probabilities,
    loss_and_accuracy,
    never,
)
from onecycle.training.meter import Meter, not_saved
from onecycle.training.sharpness import Sharpness
from onecycle.training.step import Step
from onecycle.training.stepping import check_begin, check_scheduler, is_per_epoch, replace_infinity


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


def fit(
    model: nn.Module,
    train_loader: DataLoader,
    test_loader: DataLoader | None,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    criterion: nn.Module,
    *,
    epochs: int,
    step_scheduler: Literal["batch", "epoch"] = "batch",
    compute: Compute | None = None,
    checkpoint: Checkpoint | None = None,
    callbacks: Sequence[Callback] = (),
    stop: Callable[[], bool] = never,
    clip_norm: float = 0.0,
    mixing: Callable[..., tuple[Tensor, ...]] | None = None,
    kept: KeptWeights | None = None,
    sharpness: Sharpness | None = None,
) -> History:
    """Train, and evaluate after each epoch.

    Args:
        model: (N, 3, H, W) -> (N, K) log-probabilities or logits, or a dictionary or an object with
            ``logits``; on its device.
        train_loader: batches of images and labels, which are (N,) class indices or (N, K) float
            probabilities. If it has ``set_epoch(epoch, start)``, that is called before each epoch
            with its number from 1 and how many batches to skip.
        test_loader: the images to evaluate on; None: no evaluation.
        optimizer: of the model's parameters.
        scheduler: of the optimizer, new; None: the learning rate is constant.
        step_scheduler: "batch": the scheduler is stepped after every batch but the last, so it
            gives ``epochs * len(train_loader)`` learning rates; "epoch": after every epoch but the
            last, so it gives ``epochs``. ReduceLROnPlateau is always stepped after an epoch, with
            the test loss.
        criterion: loss to minimise, of (output, labels): a mean over the batch.
        epochs: passes over the training images, 1 or more.
        compute: device, precision, compilation and group; None: the model's device, float32.
        checkpoint: restored from at the beginning and saved to; ``train_loader`` needs
            ``set_epoch`` then.
        callbacks: objects with ``on_step(epoch, step, accuracy)``, ``on_epoch(record)`` or both,
            see :class:`Callback`.
        stop: asked after each step whose loss was read and, in a single process, during evaluation;
            True ends the training there, and so does a KeyboardInterrupt out of a callback.
        clip_norm: the gradient is scaled down to this norm if it is longer; 0: it is not.
        mixing: mixes a batch on the device, such as :class:`onecycle.data.mixing.Mixing`; None: no
            image is mixed.
        kept: follows the weights; its ``apply`` gives the network those to keep, afterwards.
        sharpness: steps whose gradient is that of the worst weights nearby; None: there are none.

    Returns:
        A record of every step and epoch that is done: fewer than ``epochs`` after a stop. Called
        again with the checkpoint, ``fit`` resumes there.

    Raises:
        DataError: an image of the first batch is not finite.
        DivergedError: a loss or a gradient is not finite.
        UsageError: the arguments do not fit together; the first batch is none that the network can
            be trained on, and no weight has changed; or a batch does not fit the GPU's memory.
    """
    compute = compute_for(model, compute)
    check_optimizer(model, optimizer, criterion)
    _check_arguments(train_loader, checkpoint, callbacks)
    if kept is not None and kept.keep == "best" and test_loader is None:
        raise UsageError("keep is best, which needs a test_loader; give one, or keep the last")
    per_epoch = is_per_epoch(scheduler, step_scheduler)
    step = Step(
        model, criterion, optimizer, scheduler, compute,
        per_epoch=per_epoch, clip_norm=clip_norm, kept=kept,
    )  # fmt: skip
    training = _Training(step, train_loader, test_loader, epochs, checkpoint, callbacks, stop)
    training.mixing, training.sharpness = mixing, sharpness
    if checkpoint is not None:
        agree = partial(
            contradictions, parts=training.parts, epochs=epochs, num_steps=len(train_loader),
            per_epoch=per_epoch,
        )  # fmt: skip
        checkpoint.restore(training.parts, agree)
    replace_infinity(scheduler)
    check_scheduler(
        scheduler, per_epoch=per_epoch, evaluated=test_loader is not None, epochs=epochs,
        num_steps=len(train_loader),
    )  # fmt: skip
    done = training.history.epochs if per_epoch else training.history.steps
    check_begin(scheduler, len(done), epochs if per_epoch else epochs * len(train_loader))
    training.run()
    return training.history


def _check_arguments(train_loader, checkpoint, callbacks) -> None:
    if checkpoint is not None and not hasattr(train_loader, "set_epoch"):
        raise UsageError(
            "a run with a checkpoint resumes within an epoch, which this train_loader cannot do; "
            "give one with set_epoch, such as get_loader makes"
        )
    for callback in callbacks:
        if not (hasattr(callback, "on_step") or hasattr(callback, "on_epoch")):
            raise UsageError(f"the callback {callback!r} has neither on_step nor on_epoch")


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
        self.is_checked = False
        self.mixing: Callable[..., tuple[Tensor, ...]] | None = None
        self.sharpness: Sharpness | None = None

    def run(self) -> None:
        """Train to the end, or until a stop."""
        try:
            while len(self.history.epochs) < self.epochs:
                self._train_epoch()
                if self._end_epoch():
                    break
        except Stopped:
            self._save(now=True)
        except torch.OutOfMemoryError as error:
            batch = "a batch" if self.batch_size is None else f"batches of {self.batch_size}"
            raise UsageError(
                f"the memory of {self.compute.device} does not hold {batch}; lower batch_size"
            ) from error
        finally:
            self.step.release()

    def _train_epoch(self) -> None:
        """The steps of an epoch, or the rest of them."""
        num_steps, group = len(self.train_loader), self.compute.group
        epoch = len(self.history.epochs) + 1
        start = len(self.history.steps) - (epoch - 1) * num_steps
        self.step.model.train()
        self.meter.start()
        for index, batch in enumerate(self._batches(epoch, start), start):
            images, labels = map(self.compute.place, as_pair(batch))
            is_alone = group.world_size == 1
            size = len(labels) if is_alone else self.train_loader.global_batch(index)
            self.batch_size = size
            share, lr, mixed = len(labels) / size, self.step.lr, ()
            if self.mixing is not None:
                images, labels, *mixed = self.mixing(images, labels, epoch, index)
            is_last = index == num_steps - 1
            done = epoch - 1 + index / num_steps
            radius = self.sharpness.at(done) if self.sharpness is not None else 0.0
            with self._checked(images, labels):
                measured, norm = self.step(
                    images, labels, *mixed, share=share,
                    is_last=is_last and epoch == self.epochs, radius=radius,
                )  # fmt: skip
            self.meter.note(lr, size, share, measured, norm)
            if self.meter.is_full or is_last:
                self._read(epoch)

    @contextlib.contextmanager
    def _checked(self, images: Tensor, labels: Tensor) -> Iterator[None]:
        """The first batch is refused before the block, which is a step; others are not checked."""
        if self.is_checked:
            yield
            return
        model = self.step.model
        check_first_batch(model, images, labels, self.compute.autocast())
        check_last_batch(model, self.train_loader, images)
        with (
            names_loss(model, self.step.criterion, (images, labels), self.compute.autocast()),
            names_images(model, images),
        ):
            yield
        self.is_checked = True

    def _batches(self, epoch: int, start: int) -> Iterable[tuple[Tensor, Tensor]]:
        if hasattr(self.train_loader, "set_epoch"):
            self.train_loader.set_epoch(epoch, start)
        return self.train_loader if start < len(self.train_loader) else ()

    def _read(self, epoch: int) -> None:
        """Read the measurements; call, stop and save by them."""
        is_stopping = self.meter.read(epoch, self.stop())
        self._call("on_step", epoch, self.history.steps[-1], self.meter.accuracy)
        if is_stopping:
            raise Stopped
        self._save()

    def _end_epoch(self) -> bool:
        """Evaluate, record and save; whether the training stops here."""
        self.compute.group.align(self.step.model)
        if self.step.kept is not None:
            self.compute.group.align(self.step.kept)
        begin = time.perf_counter()
        loss, accuracy = self._evaluate()
        record = self.meter.end_epoch(loss, accuracy, time.perf_counter() - begin)
        if self.step.kept is not None:
            self.step.kept.note_epoch(self.history)
        is_done = len(self.history.epochs) == self.epochs
        if not is_done:
            self.step.end_epoch(loss)
        self._call("on_epoch", record)
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
            return loss_and_accuracy(
                *log_probabilities(self.step.model, self.test_loader, self.compute, stop=self.stop)
            )
        except KeyboardInterrupt:
            raise Stopped from None

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
            raise Stopped from None
        except Exception:  # such as a full disk of a tracker: what is trained is kept
            with contextlib.suppress(RunError):
                self._save(now=True)
            raise
