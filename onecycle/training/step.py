"""One optimizer step: forward pass, loss, gradient, update."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onecycle.training.compute import Compute


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


class Step:
    """Updates a network by one batch; in a group, by the batch of all its processes.

    Args:
        model: on its device.
        criterion: loss of (output, labels), a mean over the batch.
        optimizer: of the model's parameters.
        compute: precision, compiler and group.

    Attributes:
        scaler: float16's loss scaling, which has a state to be saved.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        compute: Compute,
    ) -> None:
        self.compute, self.optimizer = compute, optimizer
        enabled = compute.precision == "float16"
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=enabled)
        self._objective = compute.group.wrap(_Objective(model, criterion))
        if compute.compile_mode is not None:
            # Two batch shapes, each compiled for itself: the last batch of an epoch is smaller.
            self._objective = torch.compile(
                self._objective, mode=compute.compile_mode, dynamic=False
            )
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def __call__(self, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Update the network.

        Args:
            images: (n, C, H, W) of this process, on the device.
            labels: (n,) of the same.
            share: of the whole batch that these are, 0..1.

        Returns:
            (2,) mean cross-entropy and number of right answers, and the norm of the gradient: both
            of this process, on the device.
        """
        with self.compute.autocast():
            loss, measured = self._objective(images, labels)
        self.optimizer.zero_grad()
        # A group takes the mean of its gradients; this makes it that of the whole batch.
        self.scaler.scale(loss * (share * self.compute.group.world_size)).backward()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self._parameters if p.grad is not None]
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return measured, norm
