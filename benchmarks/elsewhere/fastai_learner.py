"""fastai's ``SaveModelCallback`` and ``fit_one_cycle(start_epoch=...)``. Saves after every epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastai.callback.tracker import SaveModelCallback, TerminateOnNaNCallback
from fastai.vision.all import (
    CrossEntropyLossFlat,
    DataLoader,
    DataLoaders,
    ImageDataLoaders,
    Learner,
    accuracy,
    set_seed,
)  # fmt: skip

from benchmarks.elsewhere.task import (
    BATCH_SIZE,
    EPOCHS,
    LR_MAX,
    SEED,
    STEPS_PER_EPOCH,
    Net,
    datasets,
    newest,
    outcome,
)  # fmt: skip

PACKAGES, CHECKPOINTS = ("fastai",), "models/model_*.pth"
TITLE = "fastai"
PROMISE = "skips the epochs that were trained; the random states are the user's"


def learner(folder: Path, loaders: Any, net: Net) -> Learner:
    return Learner(loaders, net, CrossEntropyLossFlat(), metrics=accuracy, path=folder,
                   cbs=TerminateOnNaNCallback())  # fmt: skip


def train(folder: Path, width: int = 8) -> dict[str, Any]:
    set_seed(SEED, reproducible=True)
    images, held_out = datasets()
    loaders = DataLoaders(
        DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=0),
        DataLoader(held_out, BATCH_SIZE, num_workers=0), device="cpu",
    )  # fmt: skip
    learn = learner(folder, loaders, Net(width=width))
    start = 0
    if last := newest(folder.glob(CHECKPOINTS)):
        learn.load(last.stem, with_opt=True)
        start = int(last.stem.removeprefix("model_")) + 1
    learn.fit_one_cycle(
        EPOCHS, LR_MAX, start_epoch=start, cbs=SaveModelCallback(every_epoch=True, with_opt=True)
    )
    steps = start * STEPS_PER_EPOCH + len(learn.recorder.losses)
    return outcome(learn.model.state_dict(), steps)


def train_pictures(folder: Path, pictures: Path) -> None:
    """Pictures in a folder per class."""
    loaders = ImageDataLoaders.from_folder(
        pictures, valid_pct=0.2, seed=SEED, bs=16, num_workers=0, device="cpu"
    )
    learn = learner(folder, loaders, Net(2, channels=3))
    learn.fit_one_cycle(1, LR_MAX)
