"""Ignite's ``DeterministicEngine`` with ``Checkpoint`` and ``DiskSaver``. Saves every 10 steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events, create_supervised_evaluator
from ignite.engine.deterministic import DeterministicEngine
from ignite.handlers import Checkpoint, DiskSaver, TerminateOnNan
from ignite.metrics import Accuracy
from ignite.utils import manual_seed
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

PACKAGES, CHECKPOINTS = ("pytorch-ignite",), "checkpoint_*.pt"
TITLE = "Ignite"
PROMISE = "to 'approximately reproduce original run's behaviour'; the same batches"


def train(folder: Path, width: int = 8) -> dict[str, Any]:
    manual_seed(SEED)
    images, held_out = datasets()
    model = Net(width=width)
    optimizer = torch.optim.Adam(model.parameters(), LR_MAX)
    scheduler = one_cycle(optimizer)

    def step(engine, batch):
        model.train()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.item()

    trainer = DeterministicEngine(step)
    evaluator = create_supervised_evaluator(model, {"accuracy": Accuracy()})
    evaluated = DataLoader(held_out, BATCH_SIZE)

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate(engine):
        print(f"epoch {engine.state.epoch}: {evaluator.run(evaluated).metrics}")

    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    state = {"trainer": trainer, "model": model, "optimizer": optimizer, "scheduler": scheduler}
    saver = Checkpoint(
        state, DiskSaver(str(folder), create_dir=True, require_empty=False), n_saved=2,
        global_step_transform=lambda *_: trainer.state.iteration,
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=SAVE_STEPS), saver)
    if last := newest(folder.glob(CHECKPOINTS)):
        # The path itself would be loaded with weights_only=True, which refuses the engine's random states.
        Checkpoint.load_objects(to_load=state, checkpoint=torch.load(last, weights_only=False))
    trainer.run(DataLoader(images, BATCH_SIZE, shuffle=True), max_epochs=EPOCHS)
    return outcome(model.state_dict(), adam_steps(optimizer))
