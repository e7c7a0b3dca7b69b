"""What a run starts from: numbers that fit its images, and weights of an earlier training."""

import dataclasses
import functools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import CustomResNet
from onecycle import Recipe, Run, load_digits, load_folder
from onecycle.data.dataset import ImageDataset
from onecycle.errors import CheckpointError, UsageError
from onecycle.modules import last_layer
from onecycle.optim.adam import get_optimizer
from onecycle.results.networks import find_model
from onecycle.results.weights import PUBLISHED, load_weights, save_weights
from onecycle.run_start import START_LR, fit_to_images

HERE = {"device": "cpu", "precision": "float32"}
QUICK = Recipe(epochs=2, lr_max=0.001, batch_size=8)


class Tiny(nn.Module):
    """Takes images of any size."""

    def __init__(self, num_classes, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


def arrays(count, size=32, classes=("a", "b"), **options):
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    labels = np.arange(count) % len(classes)
    return ImageDataset(images, labels, classes, "arrays", **options)


@pytest.fixture
def pictures(tmp_path):
    """A folder of own pictures of two classes, and the images in it."""
    for number, image in enumerate(arrays(20).data):
        folder = tmp_path / "pictures" / ("cat", "emu")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    "count, batch_size",
    [(4, 2), (16, 2), (17, 2), (192, 16), (300, 32), (4096, 512), (50_000, 512)],
)
def test_a_batch_size_that_is_not_given_leaves_eight_steps(count, batch_size):
    recipe, reasons = fit_to_images(Recipe(), arrays(count))
    assert recipe.batch_size == batch_size
    assert count < 16 or count // batch_size >= 8
    assert bool(reasons) == (count < 8000)


def test_fewer_images_get_more_epochs_and_many_the_assignments():
    epochs = [fit_to_images(Recipe(), arrays(n))[0].epochs for n in (50, 200, 2000, 8000, 50_000)]
    assert epochs == sorted(epochs, reverse=True) and epochs[-2:] == [24, 24] and epochs[0] > 24


def test_what_is_given_stays():
    given = Recipe(epochs=3, batch_size=100, cutout_size_px=5)
    recipe, reasons = fit_to_images(given, arrays(120, size=48))
    assert recipe == dataclasses.replace(given, image_size=48) and reasons == []
    assert fit_to_images(Recipe(), arrays(20, size=64))[0].cutout_size_px == 16
    with pytest.raises(UsageError, match="image_size is 64 and the images are 48x48"):
        fit_to_images(Recipe(image_size=64), arrays(20, size=48))


def test_own_pictures_start_from_the_published_weights_and_say_so(pictures, tmp_path):
    data = load_folder(pictures)
    run = Run(tmp_path / "run", data, CustomResNet, QUICK, **HERE)
    published = load_weights(PUBLISHED)
    state = run.model.state_dict()
    head = {name for name in state if name.startswith("fc.")}
    assert len(head) == 2
    for name in set(state) - head:
        assert torch.equal(state[name], published.state_dict[name]), name
    assert state["fc.weight"].shape == (2, 512)
    assert run.train.mean == published.mean and run.train.std == published.std
    assert any("--init none" in line for line in run.notes)
    plain = Run(tmp_path / "plain", data, CustomResNet, QUICK, init="none", **HERE)
    assert plain.start is None and plain.train.mean != published.mean
    assert not any("starts from" in line for line in plain.notes)
    assert run.identity != plain.identity


def test_a_start_needs_no_range_test_unless_it_is_asked_for(pictures, tmp_path):
    data, open_rate = load_folder(pictures), dataclasses.replace(QUICK, lr_max=None)
    found = Run(tmp_path / "a", data, CustomResNet, open_rate, **HERE).find_lr()
    assert found.lr_max == START_LR and found.lrs == [] and "starts from weights" in found.rule
    asked = dataclasses.replace(open_rate, finder_steps=20)
    assert len(Run(tmp_path / "b", data, CustomResNet, asked, **HERE).find_lr().lrs) == 20
    given = Run(tmp_path / "c", data, CustomResNet, QUICK, **HERE).find_lr()
    assert given.lr_max == QUICK.lr_max


def test_others_start_from_nothing_unless_it_is_asked_for(pictures, tmp_path):
    small = load_digits()[0].sample(40).hold_out(10)
    start = functools.partial(Run, tmp_path / "run", recipe=QUICK, **HERE)
    assert start(small, CustomResNet).start is None  # not pictures
    assert start(load_folder(pictures), Tiny).start is None  # not this network
    muon = dataclasses.replace(QUICK, optimizer="muon", weight_decay=0)
    assert start(load_folder(pictures), CustomResNet, recipe=muon).start is None
    assert start(small, CustomResNet, init=PUBLISHED).start.classes[3] == "cat"
    with pytest.raises(CheckpointError, match="another network than Tiny"):
        start(small, Tiny, init=PUBLISHED)
    with pytest.raises(UsageError, match="muon initialises"):
        start(small, CustomResNet, init=PUBLISHED, recipe=muon)
    with pytest.raises(CheckpointError, match="gone"):
        start(small, CustomResNet, init=tmp_path / "gone.safetensors")


def test_a_run_trains_on_from_another_ones_weights(tmp_path):
    data = arrays(24).hold_out(8)
    first = Run(tmp_path / "first", data, Tiny, QUICK, **HERE)
    first.save()
    for classes, kept in ((("a", "b"), True), (("b", "a"), False), (("a", "b", "c"), False)):
        others = arrays(24, classes=classes).hold_out(8)
        second = Run(tmp_path / "second", others, Tiny, QUICK, init=first.folder, **HERE)
        old, new = first.model.state_dict(), second.model.state_dict()
        assert torch.equal(old["body.0.weight"], new["body.0.weight"])
        same_head = old["head.weight"].shape == new["head.weight"].shape
        assert (same_head and torch.equal(old["head.weight"], new["head.weight"])) == kept


def test_a_resumed_and_a_finished_run_keep_their_start(pictures, tmp_path):
    data, folder = load_folder(pictures), tmp_path / "run"
    first = Run(folder, data, CustomResNet, QUICK, **HERE)
    first.save()
    again = Run(folder, data, CustomResNet, QUICK, **HERE)
    assert again.evaluate().probabilities.tolist() == first.evaluate().probabilities.tolist()
    alone = Run.load(folder, **HERE)
    shown = alone.predict(sorted(pictures.glob("*/*.png")))
    assert shown == first.predict(sorted(pictures.glob("*/*.png")))
    for step in (alone.evaluate, lambda: alone.figure("samples")):
        with pytest.raises(UsageError, match=r"Run.load\(folder, data\)"):
            step()
    assert Run.load(folder, data, **HERE).evaluate().accuracy == first.evaluate().accuracy


def test_the_body_trains_at_its_share_of_the_rate():
    torch.manual_seed(0)
    model = Tiny(2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    options = {"weight_decay": 0.0, "betas": (0.9, 0.99)}
    optimizer = get_optimizer(model, lr=0.1, body_rate=0.01, **options)
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    for name, value in model.named_parameters():
        if name.endswith("weight") and value.ndim > 1:  # Adam's first step is the learning rate
            step = (value - before[name]).abs().max().item()
            assert step == pytest.approx(0.1 if name.startswith("head.") else 0.001, rel=1e-3)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    frozen = get_optimizer(model, lr=0.1, body_rate=0.0, **options)
    kept = {name: value.clone() for name, value in model.named_parameters()}
    frozen.step()
    assert torch.equal(kept["body.0.weight"], model.body[0].weight)
    assert type(get_optimizer(model, lr=0.1, **options)) is torch.optim.Adam


@pytest.mark.parametrize("size", [40, 64])
def test_images_of_another_size_train_and_come_back(size, tmp_path):
    data = arrays(24, size=size).hold_out(8)
    run = Run(tmp_path / "run", data, Tiny, QUICK, **HERE)
    run.save()
    weights = load_weights(tmp_path / "run" / "model.safetensors")
    assert weights.image_size == size == run.recipe.image_size
    assert run.samples[0].shape[2:] == (size, size)


@pytest.mark.parametrize("size", [40, 64, 96])
def test_the_custom_resnet_takes_larger_images_and_their_largest_value(size):
    torch.manual_seed(0)
    model = CustomResNet(3).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        maps = model.layer3(model.layer2(model.layer1(model.prep_layer(images))))
        expected = model.softmax(model.fc(maps.amax((2, 3))))
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)


def test_networks_are_found_by_name(tmp_path, monkeypatch):
    assert find_model("custom_resnet") is CustomResNet is find_model("CustomResNet")
    network = find_model("resnet18")(7)
    assert type(network).__name__ == "ResNet" and network.fc.out_features == 7
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\ndef small(classes):\n    return nn.Linear(3, classes)\n"
        "def none(classes):\n    pass\ndef more(classes, width):\n    pass\nbuilt, three = small(2), 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert find_model("my_networks:small")(5).out_features == 5
    for name in ("resnet0", "my_networks:gone", "gone:small", "a:b:c", "raft_large"):
        with pytest.raises(UsageError, match=name.partition(":")[0]):
            find_model(name)
    for name in ("none", "more", "built", "three"):
        with pytest.raises(UsageError, match="model .*lambda classes"):
            find_model(f"my_networks:{name}")(5)
    with pytest.raises(UsageError, match="did you mean .*efficientnet_b0"):
        find_model("efficientnet_0")
    assert last_layer(network) == "fc" and last_layer(Tiny(2)) == "head"
    assert last_layer(nn.ReLU()) is None


def test_weights_say_of_which_network_they_are(tmp_path):
    data = arrays(24).hold_out(8)
    run = Run(tmp_path / "run", data, find_model("resnet18"), QUICK, **HERE)
    run.save()
    assert load_weights(run.folder / "model.safetensors").data["model"] == "resnet18"
    assert Run.load(run.folder, **HERE).predict(list(data[1].data)) == run.predict(data[1].data)
    shutil.rmtree(run.folder)


def test_a_start_without_a_digest_is_refused(tmp_path):
    file = save_weights(
        tmp_path / "w.safetensors", Tiny(2).state_dict(), recipe={},
        data={"source": "x", "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3},
    )  # fmt: skip
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        Run(tmp_path / "run", arrays(24).hold_out(8), Tiny, QUICK, init=file, **HERE)
