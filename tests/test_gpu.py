"""What only a GPU can show: run with the others where there is one, skipped elsewhere."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from models import CustomResNet
from onecycle.commands import main
from onecycle.data.augmentation import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    augment_pixels,
    draw_augmentation,
    get_test_batch_transform,
    pad_images,
)
from onecycle.data.dataset import ImageDataset
from onecycle.data.loaders import ResidentLoader
from onecycle.errors import DivergedError, UsageError
from onecycle.modules import freeze_idle_biases
from onecycle.optim.lr_finder import LRFinding
from onecycle.recipe import PRESETS
from onecycle.run_parts import OPTIMIZERS, make_loader, one_cycle_of
from onecycle.training.checkpoint import Checkpoint
from onecycle.training.compute import Compute, get_compile_mode, set_seed, to_device
from onecycle.training.loop import fit, predict
from onecycle.training.meter import READ_EVERY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
NORMAL = CIFAR10_MEAN, CIFAR10_STD
DIGITS = [
    "--dataset", "digits", "--epochs", "6", "--limit-train", "1000", "--limit-test", "100",
]  # fmt: skip


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 10
    pixels = rng.integers(0, 128, (1000, 32, 32, 3), np.uint8)
    # There is something to learn.
    pixels += (labels * 12).astype(np.uint8)[:, None, None, None]
    return ImageDataset(pixels, labels, tuple("abcdefghij"), "noise")


def training(images, device, *, preset="assignment", epochs=2, batch_size=48, lr_max=0.002,
             precision="bfloat16", compile_mode=None, criterion=None, **options):  # fmt: skip
    """A short training; its losses, and the network."""
    recipe = dataclasses.replace(
        PRESETS[preset], epochs=epochs, batch_size=batch_size, lr_max=lr_max
    )
    set_seed(0)
    compute = Compute(device, precision, compile_mode)
    model = compute.place_model(CustomResNet(10))
    freeze_idle_biases(model)
    optimizer = OPTIMIZERS[recipe.optimizer](model, recipe, images, compute)
    loader = make_loader((images, images), recipe, compute, train=True, shared=True)
    finding = LRFinding([], [], [], lr_max, lr_max / 200, "given")
    history = fit(
        model, loader, None, optimizer, one_cycle_of(optimizer, recipe, finding, len(loader)),
        criterion or nn.CrossEntropyLoss(label_smoothing=0.1),
        epochs=epochs, compute=compute, **options,
    )  # fmt: skip
    return [step.loss for step in history.steps], model


@pytest.fixture
def full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("padding", ["constant", "reflect"])
def test_the_augmentation_is_that_of_the_cpu_bit_by_bit(images, padding):
    made = []
    for device in (CPU, GPU):
        indices = torch.arange(1000, device=device).flip(0)
        draws = draw_augmentation(5, 7, indices)
        padded = pad_images(images.data, device, mode=padding)
        fill = torch.tensor((125, 123, 114), dtype=torch.uint8, device=device)
        made.append(augment_pixels(padded, indices, draws, fill).cpu())
    assert torch.equal(*made)


def test_float32_trains_as_on_the_cpu(images, full_float32):
    few = images.subset(range(96))
    ours, _ = training(few, GPU, precision="float32", epochs=2)
    theirs, _ = training(few, CPU, precision="float32", epochs=2)
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("preset", ["assignment", "speedrun"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_trains_as_eager_does(images, mode, preset):
    try:
        get_compile_mode(GPU, mode)
    except UsageError as error:
        pytest.skip(str(error))
    few = images.subset(range(112))  # two batch shapes
    eager, _ = training(few, GPU, preset=preset)
    compiled, _ = training(few, GPU, preset=preset, compile_mode=mode)
    assert compiled == pytest.approx(eager, rel=0.1)


def test_a_step_does_not_wait_for_the_gpu(images):
    def waits(epochs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                training(images, GPU, epochs=epochs, batch_size=10)  # 100 steps an epoch
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    waits(1)  # kernels are chosen at the first time
    # Each epoch: what was measured is read, and the new order placed.
    assert waits(3) - waits(2) <= -(-100 // READ_EVERY) + 1


def test_a_full_gpu_is_one_line_that_names_the_batch_size(images):
    torch.cuda.empty_cache()
    fraction = (torch.cuda.memory_reserved() + 2**28) / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        with pytest.raises(UsageError, match="^the memory of cuda.* batches of 1000; lower batch"):
            training(images, GPU, batch_size=1000, epochs=3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_a_training_that_diverges_is_told_of_within_a_few_dozen_steps(images):
    class Breaking(nn.CrossEntropyLoss):
        calls = 0

        def forward(self, output, labels):
            self.calls += 1
            return super().forward(output, labels) * (float("nan") if self.calls == 5 else 1)

    criterion = Breaking()
    with pytest.raises(DivergedError, match="norm is nan in epoch 1, step 4, "):
        training(images, GPU, epochs=1, batch_size=10, criterion=criterion)
    assert criterion.calls <= READ_EVERY


def test_predictions_are_those_of_the_cpu(images, full_float32):
    set_seed(0)
    model = CustomResNet(10)
    found = []
    for device in (CPU, GPU):
        transform = get_test_batch_transform(images.data, *NORMAL, device=device)
        loader = ResidentLoader(transform, images.targets, 300, device=device, train=False)
        found.append(predict(to_device(model, device), loader, mirrored=True))
    assert found[1].probabilities == pytest.approx(found[0].probabilities, abs=1e-4)
    assert found[1].mirrored == pytest.approx(found[0].mirrored, abs=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_the_command_line_trains_on_the_gpu(precision, tmp_path):
    options = ["--device", "cuda", "--precision", precision, "--lr-max", "0.004"]
    assert main(["train", *DIGITS, *options, "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert results["machine"]["device"] == "cuda"
    assert results["final"]["test_accuracy"] > 0.6


def test_a_run_goes_on_where_it_was_stopped(images, tmp_path):
    def saved():
        made = Checkpoint(tmp_path, identity={"of": "this test"}, environment={}, epoch_every_s=0.0)
        made.load("auto")
        return made

    few = images.subset(range(100))
    options = {"epochs": 8, "batch_size": 10, "lr_max": 0.0005}  # 10 steps an epoch
    whole, _ = training(few, GPU, **options)
    stops = iter([False] * 3 + [True] * 9)
    part, _ = training(few, GPU, checkpoint=saved(), stop=lambda: next(stops), **options)
    assert 0 < len(part) < 80
    gone_on, _ = training(few, GPU, checkpoint=saved(), **options)
    assert len(gone_on) == 80 and gone_on[: len(part)] == part
    # Not bit by bit: the GPU adds in an order of its own.
    assert gone_on[-10:] == pytest.approx(whole[-10:], rel=0.3)
