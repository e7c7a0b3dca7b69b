"""What only a GPU can show: run with the others where there is one, skipped elsewhere."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.step import bare_step, constant_batch, in_mode
from benchmarks.training import fit_run, make_run, plain_recipe
from models import CustomResNet
from onecycle import PRESETS, ImageDataset, Run, load_digits
from onecycle.commands import main
from onecycle.data.augmentation import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    augment_pixels,
    draw_augmentation,
    pad_images,
)
from onecycle.data.batches import get_test_batch_transform
from onecycle.data.loaders import ResidentLoader
from onecycle.errors import DivergedError, UsageError
from onecycle.training.compute import Compute, get_compile_mode, set_seed, to_device
from onecycle.training.inference import predict
from onecycle.training.meter import READ_EVERY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SETTINGS = {
    "class_weights": "auto", "mixup": 0.2, "cutmix": 1.0, "clip_norm": 1.0, "average_steps": 9,
}  # fmt: skip
NORMAL = CIFAR10_MEAN, CIFAR10_STD


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 10
    pixels = rng.integers(0, 128, (1000, 32, 32, 3), np.uint8)
    # There is something to learn.
    pixels += (labels * 12).astype(np.uint8)[:, None, None, None]
    return ImageDataset(pixels, labels, tuple("abcdefghij"), "noise")


def training(images, device, *, preset="assignment", epochs=2, batch_size=48, lr_max=0.002,
             precision="bfloat16", compile_mode=None, criterion=None, **settings):  # fmt: skip
    """The losses of a short training."""
    recipe = dataclasses.replace(
        PRESETS[preset], epochs=epochs, batch_size=batch_size, lr_max=lr_max, **settings
    )
    compute = Compute(device, precision, compile_mode)
    run = make_run(recipe, (images, images), compute)
    run.criterion = criterion or run.criterion
    return [step.loss for step in fit_run(run).steps]


def need(mode):
    """Skip the test where this machine cannot compile."""
    try:
        get_compile_mode(GPU, mode)
    except UsageError as error:
        pytest.skip(str(error))


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
    ours = training(few, GPU, precision="float32", epochs=2)
    theirs = training(few, CPU, precision="float32", epochs=2)
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("preset", ["assignment", "speedrun"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_trains_as_eager_does(images, mode, preset):
    need(mode)
    few = images.subset(range(112))  # two batch shapes
    eager = training(few, GPU, preset=preset)
    compiled = training(few, GPU, preset=preset, compile_mode=mode)
    assert compiled == pytest.approx(eager, rel=0.1)


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("preset", ["assignment", "speedrun"])
def test_fused_trains_as_eager_does(images, preset, precision, full_float32):
    need("fused")
    few = images.subset(range(112))  # two batch shapes
    eager, fused = (
        training(few, GPU, preset=preset, precision=precision, compile_mode=way)
        for way in (None, "fused")
    )
    assert fused == pytest.approx(eager, rel=0.02 if precision == "float32" else 0.1)


@pytest.mark.parametrize(("mode", "plain"), [("graph", "eager"), ("fused-graph", "fused")])
def test_a_captured_step_trains_as_it_does_without_the_graph(images, mode, plain, full_float32):
    need(mode)
    few, ends = images.subset(range(96)), []
    for way in (mode, plain):
        compute = in_mode(Compute(GPU, "float32"), way)
        run = make_run(plain_recipe(48, epochs=2), (few, few), compute)
        batch = constant_batch(run)
        step = bare_step(run, *batch, way)
        for _ in range(5 if way == mode else 8):  # 3 are before the capture
            step()
        ends.append(run.criterion(run.model(batch[0]), batch[1]).item())
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("preset", ["assignment", "speedrun"])
def test_a_graph_trains_as_eager_does(images, preset, precision, full_float32):
    few = images.subset(range(112))  # two batch shapes
    eager, graph = (
        training(few, GPU, preset=preset, precision=precision, compile_mode=way, epochs=3)
        for way in (None, "graph")
    )
    assert graph == pytest.approx(eager, rel=0.02 if precision == "float32" else 0.1)


@pytest.mark.parametrize("settings", [SETTINGS, {"sharpness": 0.05, "sharpness_from": 1}], ids=str)
def test_settings_train_in_a_graph_as_eager(images, settings, full_float32):
    few = images.subset(range(112))
    eager, graph = (
        training(few, GPU, precision="float32", compile_mode=way, epochs=3, **settings)
        for way in (None, "graph")
    )
    assert graph == pytest.approx(eager, rel=0.02)


def test_a_graphed_run_that_was_stopped_resumes(images, tmp_path):
    few = images.subset(range(112))
    recipe = dataclasses.replace(PRESETS["assignment"], epochs=4, batch_size=48, lr_max=0.002)

    class Stop:
        def on_step(self, epoch, step, accuracy):
            if step.step >= 6:
                raise KeyboardInterrupt

    def fitted(name, **options):
        run = Run(tmp_path / name, (few, few), CustomResNet, recipe, compile="graph", **options)
        return run, run.fit()

    _, whole = fitted("whole")
    _, part = fitted("part", callbacks=[Stop()])
    assert len(part.steps) < len(whole.steps)
    _, resumed = fitted("part")
    losses = [[step.loss for step in history.steps] for history in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_fused_steps_are_the_same_bits_each_time():
    need("fused")
    block, found = Compute(GPU, "bfloat16", "fused").place_model(CustomResNet(10)).layer2, []
    x = torch.randn(64, 128, 16, 16, device=GPU).to(memory_format=torch.channels_last)
    for _ in range(3):
        block.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            y = block(x)
        y.sum().backward()
        found.append((y.detach(), block.bn.weight.grad.clone(), block.bn.bias.grad.clone()))
    for again in found[1:]:
        assert all(map(torch.equal, again, found[0]))


def test_settings_train_as_on_the_cpu(images, full_float32):
    few = images.subset(range(96))
    ours, theirs = (
        training(few, device, precision="float32", **SETTINGS) for device in (GPU, CPU)
    )  # fmt: skip
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_settings_train_compiled_as_eager(images, precision):
    few = images.subset(range(112))  # two batch shapes
    eager = training(few, GPU, precision=precision, **SETTINGS)
    need(mode := "reduce-overhead")
    compiled = training(few, GPU, precision=precision, compile_mode=mode, **SETTINGS)
    assert compiled == pytest.approx(eager, rel=0.1)


@pytest.mark.parametrize("settings", [{}, SETTINGS], ids=["plain", "settings"])
def test_a_step_does_not_wait_for_the_gpu(images, settings):
    def waits(epochs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                # 100 steps an epoch.
                training(images, GPU, epochs=epochs, batch_size=10, **settings)
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
def test_the_digits_are_learned_in_every_precision(precision, tmp_path):
    train, test = load_digits()
    recipe = dataclasses.replace(PRESETS["digits"], epochs=6, lr_max=0.004)
    data = train.sample(1000), test.sample(100)
    run = Run(tmp_path, data, CustomResNet, recipe, device="cuda", precision=precision)
    assert run.evaluate().accuracy > 0.6
    run.save()
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert (results["machine"]["device"], results["machine"]["precision"]) == ("cuda", precision)
    again = Run.load(tmp_path, data, CustomResNet, device="cuda", precision=precision)
    assert again.evaluate().accuracy == pytest.approx(run.evaluate().accuracy, abs=0.02)


def test_the_command_trains_on_the_gpu(tmp_path):
    options = ["--dataset", "digits", "--epochs", "2", "--limit-train", "300", "--device", "cuda"]
    assert main(["train", *options, "--lr-max", "0.004", "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert results["machine"]["device"] == "cuda"


@pytest.mark.parametrize("way", ["off", "fused"])
def test_a_run_resumes_where_it_was_stopped(images, tmp_path, way):
    need(way)
    few = images.subset(range(95))  # the last of 10 batches is smaller
    recipe = dataclasses.replace(PRESETS["assignment"], epochs=8, batch_size=10, lr_max=0.0005)

    def fitted(folder, callbacks=()):
        data = few, few.sample(30)
        made = Run(
            tmp_path / folder, data, CustomResNet, recipe, device="cuda", compile=way,
            callbacks=callbacks,
        )  # fmt: skip
        return made.fit()

    class Stop:
        def on_epoch(self, record):
            if record.epoch == 3:
                raise KeyboardInterrupt

    part = fitted("part", [Stop()])
    assert len(part.epochs) == 3
    resumed, whole = fitted("part"), fitted("whole")
    losses = [step.loss for step in resumed.steps]
    assert len(losses) == 80 and losses[:30] == [step.loss for step in part.steps]
    # Not bit by bit: the GPU adds in an order of its own.
    assert losses[-10:] == pytest.approx([step.loss for step in whole.steps[-10:]], rel=0.3)
