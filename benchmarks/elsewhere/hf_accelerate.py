"""Accelerate with ``save_state``, ``load_state`` and ``skip_first_batches``. Saves every 10 steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from torch.utils.data import DataLoader

from benchmarks.elsewhere.task import (
    BATCH_SIZE,
    EPOCHS,
    LR_MAX,
    SAVE_STEPS,
    SEED,
    Net,
    adam_steps,
    datasets,
    newest,
    one_cycle,
    outcome,
)  # fmt: skip

PACKAGES, CHECKPOINTS = ("accelerate",), "step_*"
TITLE = "Accelerate"
PROMISE = "saves random states; the loop skips the batches that were seen (complete_cv_example)"


def train(folder: Path, width: int = 8) -> dict[str, Any]:
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        project_config=ProjectConfiguration(str(folder)),
    )  # fmt: skip
    set_seed(SEED)
    images, held_out = datasets()
    model = Net(width=width)
    optimizer = torch.optim.Adam(model.parameters(), LR_MAX)
    model, optimizer, loader, evaluated, scheduler = accelerator.prepare(
        model, optimizer, DataLoader(images, BATCH_SIZE, shuffle=True),
        DataLoader(held_out, BATCH_SIZE), one_cycle(optimizer),
    )  # fmt: skip
    done = 0
    if last := newest(folder.glob(CHECKPOINTS)):
        accelerator.load_state(str(last))
        done = int(last.name.removeprefix("step_"))
    for epoch in range(done // len(loader), EPOCHS):
        model.train()
        loader.set_epoch(epoch)
        skipped = done % len(loader) if epoch == done // len(loader) else 0
        batches = accelerator.skip_first_batches(loader, skipped) if skipped else loader
        for step, (pictures, labels) in enumerate(batches, epoch * len(loader) + skipped + 1):
            loss = torch.nn.functional.cross_entropy(model(pictures), labels)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if step % SAVE_STEPS == 0:
                accelerator.save_state(str(folder / f"step_{step}"))
        model.eval()
        with torch.no_grad():
            right = sum(
                (
                    torch.eq(*accelerator.gather_for_metrics((model(pictures).argmax(1), labels)))
                ).sum()
                for pictures, labels in evaluated
            )
        accelerator.print(f"epoch {epoch + 1}: {right} right")
    return outcome(model.state_dict(), adam_steps(optimizer.optimizer))
