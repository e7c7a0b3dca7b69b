"""Hugging Face ``Trainer`` with ``full_determinism`` and ``resume_from_checkpoint``. Saves every 10 steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, enable_full_determinism
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.elsewhere.task import (
    BATCH_SIZE,
    EPOCHS,
    LR_MAX,
    SAVE_STEPS,
    SEED,
    Net,
    adam_steps,
    datasets,
    one_cycle,
    outcome,
)  # fmt: skip

PACKAGES, CHECKPOINTS = ("transformers", "accelerate"), "checkpoint-*"
TITLE = "Transformers Trainer"
PROMISE = "skips the batches that were seen and restores the random states"


class Classifier(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = Net(width=width)

    def forward(self, images, labels):
        logits = self.net(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def collate(samples):
    return {
        "images": torch.stack([image for image, _ in samples]),
        "labels": torch.stack([label for _, label in samples]),
    }


def train(folder: Path, width: int = 8) -> dict[str, Any]:
    enable_full_determinism(SEED)
    images, held_out = datasets()
    model = Classifier(width)
    optimizer = torch.optim.Adam(model.parameters(), LR_MAX)
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE, eval_strategy="epoch", save_strategy="steps",
            save_steps=SAVE_STEPS, save_total_limit=2, seed=SEED, data_seed=SEED,
            full_determinism=True, use_cpu=True, report_to="none",
        ),
        data_collator=collate, train_dataset=images, eval_dataset=held_out,
        optimizers=(optimizer, one_cycle(optimizer)),
    )  # fmt: skip
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return outcome(model.net.state_dict(), adam_steps(optimizer))
