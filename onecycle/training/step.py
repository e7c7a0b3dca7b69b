"""One optimizer step: forward pass and loss, gradient, update, learning rate of the next step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onecycle.outputs import class_scores
from onecycle.training.averaging import KeptWeights
from onecycle.training.compute import Compute
from onecycle.training.replay import Replays
from onecycle.training.sharpness import climbed


class Objective(nn.Module):
    """Forward pass and loss as one module, to be compiled and distributed as one.

    Args:
        model: (N, 3, H, W) -> (N, K) log-probabilities or logits.
        criterion: loss of (output, labels), a mean over the batch.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        others: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss to minimise, and (2,) cross-entropy and number of correct predictions."""
        output = class_scores(self.model(images))

        def mean(loss: Callable[[Tensor, Tensor], Tensor], output: Tensor) -> Tensor:
            if others is None:
                return loss(output, labels)
            # Not of a mixture of labels: so any criterion will do.
            return weight * loss(output, labels) + (1 - weight) * loss(output, others)

        with torch.no_grad():
            plain = mean(F.cross_entropy, output.float())
            classes = labels if labels.ndim == 1 else labels.argmax(1)
            correct = (output.argmax(1) == classes).sum()
        return mean(self.criterion, output), torch.stack([plain, correct.float()])


class Step:
    """Everything that a training step changes. A call is one step.

    Args:
        model: on the device of ``compute``.
        criterion: loss to minimise, of (output, labels): a mean over the batch.
        optimizer: of the model's parameters.
        scheduler: sets the learning rates; None: they stay as they are.
        compute: precision, compilation, and the group that shares the batch.
        per_epoch: :meth:`end_epoch` steps the scheduler, not each call.
        clip_norm: the gradient is scaled down to this norm if it is longer; 0: it is not.
        kept: follows the weights, see :class:`KeptWeights`; None: nothing does.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None,
        compute: Compute,
        *,
        per_epoch: bool = False,
        clip_norm: float = 0.0,
        kept: KeptWeights | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.per_epoch = per_epoch
        self.compute = compute
        self.clip_norm = clip_norm
        self.kept = kept
        self.scaler = torch.amp.GradScaler(
            compute.device.type, enabled=compute.precision == "float16"
        )
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.criterion = criterion
        self._module = Objective(model, criterion)
        self._objective = compute.group.wrap(self._module)
        if compute.torch_compile_mode is not None:
            # Two batch shapes, each compiled separately: the last batch of an epoch is smaller.
            self._objective = torch.compile(
                self._objective, mode=compute.torch_compile_mode, dynamic=False
            )
        self._gradient = self._compute_gradient
        if compute.is_graph:
            self._gradient = Replays(self._module, self._compute_gradient)

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint has to keep, by name."""
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "kept": self.kept,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *mixed: Tensor,
        share: float,
        is_last: bool,
        radius: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """One step; its measurements stay on the device.

        Args:
            images: (n, 3, H, W) on the device: this process's share of the batch.
            labels: (n,) int64 class indices or (n, K) float probabilities, on the device.
            mixed: of mixed images the other labels, and the weight of the first, see ``Mixing``.
            share: n as a share of the batch of the whole group, 0..1.
            is_last: the last step of the training: the schedule has no learning rate after it.
            radius: how far the weights climb before the gradient is taken, see ``Sharpness``; 0: they
                do not.

        Returns:
            (2,) mean cross-entropy and number of correct predictions, of this process's share; and
            the norm of the whole batch's gradient before it is clipped, in float16 times the scale
            of the loss.
        """
        measured, norm = self._gradient(images, labels, *mixed, share=share)
        if radius:
            measured = measured.clone()  # a graph writes its outputs to the same place again
            with climbed(self.model, radius, norm):
                _, norm = self._gradient(images, labels, *mixed, share=share)
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            # What the optimizer does not hold is not unscaled.
            updated = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(updated, self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.kept is not None:
            self.kept.note_step()
        if self.scheduler is not None and not (is_last or self.per_epoch):
            self.scheduler.step()
        return measured, norm

    def _compute_gradient(
        self, images: Tensor, labels: Tensor, *mixed: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """The gradient of the whole batch in the parameters; what a call returns."""
        with self.compute.autocast():
            loss, measured = self._objective(images, labels, *mixed)
        self._module.zero_grad()  # also what the optimizer does not hold
        # A group averages the gradients of its processes; with this factor the average is the
        # gradient of the whole batch.
        weight = share * self.compute.group.world_size
        with self.compute.group.waiting("their gradients"):
            self.scaler.scale(loss * weight).backward()
        return measured, torch.nn.utils.get_total_norm(
            [p.grad for p in self._parameters if p.grad is not None]
        )

    def release(self) -> None:
        """Give the memory of graphs back, after the training."""
        if isinstance(self._gradient, Replays):
            self._gradient.release()

    def end_epoch(self, test_loss: float | None) -> None:
        """Step a scheduler that is stepped after each epoch.

        Args:
            test_loss: mean over the test images, in nats, for a scheduler that watches it.
        """
        if self.scheduler is not None and self.per_epoch:
            watches = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            with warnings.catch_warnings():
                # A run that resumes at the end of an epoch makes no optimizer step before.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.scheduler.step(*[test_loss] * watches)
