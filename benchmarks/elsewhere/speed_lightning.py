"""A ``LightningModule`` and its ``Trainer``, with the albumentations loader."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F

from benchmarks.elsewhere.speed import Task, albumentations_loader, one_cycle


class Classifier(L.LightningModule):
    def __init__(self, task: Task, steps: int) -> None:
        super().__init__()
        self.task, self.steps = task, steps
        self.net = task.network()

    def training_step(self, batch, index):
        images, labels = batch
        output = self.net(images)
        loss = F.cross_entropy(output, labels)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_accuracy", (output.argmax(1) == labels).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.001)
        cycle = one_cycle(optimizer, self.task, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class Turns(L.Callback):
    def __init__(self, task: Task) -> None:
        self.task = task

    def on_train_epoch_start(self, trainer, module):
        self.task.begin()

    def on_train_epoch_end(self, trainer, module):
        self.task.end()


def train(task: Task) -> None:
    L.seed_everything(0)
    loader = albumentations_loader(task)
    trainer = L.Trainer(
        max_epochs=task.epochs, accelerator="gpu" if task.device == "cuda" else "cpu", devices=1,
        precision="bf16-mixed" if task.autocast else "32-true", callbacks=[Turns(task)],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(Classifier(task, len(loader)), loader)
