"""Lightning with ``ModelCheckpoint(save_last=True)`` and ``fit(ckpt_path="last")``. Saves each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

from benchmarks.elsewhere.task import (
    BATCH_SIZE,
    EPOCHS,
    LR_MAX,
    SEED,
    Net,
    adam_steps,
    datasets,
    one_cycle,
    outcome,
)  # fmt: skip

PACKAGES, CHECKPOINTS = ("lightning",), "last*.ckpt"
TITLE = "Lightning, saves each epoch"
PROMISE = "restores model, optimizers, schedulers, loops and callbacks; not the random states"


class Classifier(L.LightningModule):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = Net(width=width)

    def training_step(self, batch, index):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("val_loss", loss)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), LR_MAX)
        scheduler = {"scheduler": one_cycle(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def train(folder: Path, width: int = 8, loader: type = DataLoader, **saving: Any) -> dict[str, Any]:
    L.seed_everything(SEED, workers=True)
    images, held_out = datasets()
    model = Classifier(width)
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", deterministic=True, logger=False,
        callbacks=[
            ModelCheckpoint(folder, save_last=True, **saving),
            EarlyStopping("loss", patience=1000, check_finite=True),
        ],
    )  # fmt: skip
    trainer.fit(
        model, loader(images, BATCH_SIZE, shuffle=True), DataLoader(held_out, BATCH_SIZE),
        ckpt_path="last",
    )  # fmt: skip
    return outcome(model.net.state_dict(), adam_steps(trainer.optimizers[0]))
