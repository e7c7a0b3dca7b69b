"""Keras on torch with ``BackupAndRestore(double_checkpoint=True)``. Saves after every epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras

from benchmarks.elsewhere.task import (
    BATCH_SIZE,
    EPOCHS,
    LR_MAX,
    SEED,
    STEPS,
    arrays,
    outcome,
    watch,
)  # fmt: skip

PACKAGES, CHECKPOINTS = ("keras",), "*.h5"
TITLE = "Keras on torch"
PROMISE = "goes on after the last whole epoch; not the random states"


class Watch(keras.layers.Layer):
    def call(self, images, training=None):
        return images * watch(bool(training)) if images.device.type != "meta" else images


def train(folder: Path, width: int = 8) -> dict[str, Any]:
    keras.utils.set_random_seed(SEED)
    images, labels, *held_out = arrays()
    model = keras.Sequential([
        keras.Input((8, 8, 1)), keras.layers.Conv2D(width, 3), keras.layers.BatchNormalization(),
        keras.layers.ReLU(), Watch(), keras.layers.AveragePooling2D(2), keras.layers.Flatten(),
        keras.layers.Dropout(0.2), keras.layers.Dense(10),
    ])  # fmt: skip
    rates = keras.optimizers.schedules.CosineDecay(
        LR_MAX / 25, STEPS - STEPS // 4, warmup_target=LR_MAX, warmup_steps=STEPS // 4
    )
    model.compile(
        keras.optimizers.Adam(rates),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    model.fit(
        images.transpose(0, 2, 3, 1), labels, BATCH_SIZE, EPOCHS,
        validation_data=(held_out[0].transpose(0, 2, 3, 1), held_out[1]),
        callbacks=[
            keras.callbacks.BackupAndRestore(folder, double_checkpoint=True),
            keras.callbacks.TerminateOnNaN(),
        ],
    )  # fmt: skip
    weights = {str(n): keras.ops.convert_to_numpy(v) for n, v in enumerate(model.weights)}
    return outcome(weights, int(model.optimizer.iterations))
