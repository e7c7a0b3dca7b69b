"""A fastai ``Learner`` on a folder of pictures, with fastai's own transforms."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fastai.vision.all import (
    Callback,
    CropPad,
    CrossEntropyLossFlat,
    Flip,
    ImageDataLoaders,
    Learner,
    Normalize,
    PadMode,
    RandomCrop,
    RandomErasing,
    accuracy,
    set_seed,
)
from PIL import Image

from benchmarks.elsewhere.speed import Task


class Turns(Callback):
    def __init__(self, task: Task) -> None:
        self.task = task

    def before_epoch(self):
        self.task.begin()

    def after_epoch(self):
        self.task.end()


def train(task: Task) -> None:
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.png" for index in range(len(task.images))]
        for file, image in zip(files, task.images.data):
            Image.fromarray(image).save(file)
        size = task.images.data.shape[1]
        area = 1 / 16  # a square of a quarter of the side
        loaders = ImageDataLoaders.from_lists(
            folder, files, [str(label) for label in task.images.targets.tolist()], valid_pct=0,
            item_tfms=[CropPad(size + 8, pad_mode=PadMode.Zeros), RandomCrop(size)],
            batch_tfms=[
                Flip(), Normalize.from_stats(task.images.mean, task.images.std),
                RandomErasing(p=1, sl=area, sh=area, min_aspect=1, max_count=1),
            ],
            bs=task.batch_size, num_workers=task.workers, device=task.device,
        )  # fmt: skip
        learn = Learner(
            loaders, task.network(), CrossEntropyLossFlat(), metrics=accuracy, cbs=Turns(task)
        )
        if task.autocast:
            learn.to_fp16()
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(task.epochs, 0.001)
