"""A folder of own pictures: trained by the command line, and its weights name new ones."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from onecycle import commands
from onecycle.errors import UsageError
from onecycle.results.networks import find_model
from onecycle.results.weights import save_weights

SHAPES = {"круг": "ellipse", "四角": "rectangle", "Ödland": None}


def draw(shape, rng):
    """A shape in any colour on a dark ground, of any size and place."""
    width, height = rng.integers(40, 120, 2).tolist()
    picture = Image.new("RGB", (width, height), tuple(rng.integers(0, 60, 3).tolist()))
    side = min(width, height)
    box = [(width - side) // 2 + 4, (height - side) // 2 + 4]
    box += [box[0] + side - 9, box[1] + side - 9]
    if shape:
        colour = tuple(rng.integers(140, 256, 3).tolist())
        getattr(ImageDraw.Draw(picture), shape)(box, fill=colour)
    return picture


@pytest.fixture
def own(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for name, shape in SHAPES.items():
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for index in range(count):
                suffix = (".png", ".jpg", ".webp")[index % 3]
                draw(shape, rng).save(tmp_path / "own" / split / name / f"{index}{suffix}")
    return tmp_path / "own"


def test_own_classes_train_with_the_same_command_and_are_recognised(own, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--epochs", "4", "--batch-size", "12", "--lr-max", "0.003", "--out", str(out)]
    assert commands.main(["train", "--data-dir", str(own), *arguments]) == 0
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert results["data"]["classes"] == sorted(SHAPES)
    assert results["data"]["source"] == "own"
    assert results["final"]["test_accuracy"] > 0.6  # chance is a third

    stored = torch.load(out / "model.pt", weights_only=True)
    weights = tmp_path / "own.safetensors"
    save_weights(weights, stored["state_dict"], data=stored["data"], recipe=stored["recipe"])
    capsys.readouterr()
    rng = np.random.default_rng(1)
    new = [tmp_path / f"{index}.png" for index in range(12)]
    expected = [list(SHAPES)[index % 3] for index in range(12)]
    for file, name in zip(new, expected, strict=True):
        draw(SHAPES[name], rng).save(file)
    assert commands.main(["predict", *map(str, new), "--weights", str(weights), "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    right = sum(f": {name} " in line for line, name in zip(lines, expected, strict=True))
    assert right >= 8


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda own: (own / "test" / "круг" / "0.png").write_bytes(b"no"), "0.png"),
        (lambda own: [f.unlink() for f in (own / "train" / "四角").iterdir()], "四角"),
        (lambda own: (own / "train").rename(own.parent / "moved"), "none to train on"),
        (lambda own: (own / "test" / "круг").rename(own / "test" / "other"), "other"),
    ],
    ids=["unreadable", "empty class", "no train", "other class"],
)
def test_a_folder_that_will_not_do_is_one_line_and_leaves_nothing(
    own, tmp_path, capfd, damage, said
):
    damage(own)
    before = sorted(own.rglob("*"))
    arguments = ["--data-dir", str(own), "--out", str(tmp_path / "run")]
    assert commands.main(["train", *arguments]) == 3
    lines = [line for line in capfd.readouterr().err.splitlines() if said in line]
    assert len(lines) == 1
    assert sorted(own.rglob("*")) == before
    assert not (tmp_path / "run").exists()


def test_class_folders_alone_train_and_are_evaluated_without_their_training_pictures(
    own, tmp_path, capsys
):
    root, out = own / "train", tmp_path / "run"
    damaged = sorted(root.glob("*/*"))[0]
    damaged.write_bytes(b"no picture")
    (root / "notes.txt").touch()
    words = ["--data-dir", str(root), "--epochs", "1", "--lr-max", "0.003", "--batch-size", "16"]
    assert commands.main(["train", *words, "--out", str(out)]) == 3
    assert "--skip-unreadable" in capsys.readouterr().err
    words += ["--skip-unreadable", "--val-share", "0.3"]
    assert commands.main(["train", *words, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert results["data"]["num_train"] + results["data"]["num_test"] == 59
    assert results["data"]["evaluated_on"] == "held-out training images"
    assert results["start"]["file"] == "custom_resnet_cifar10.safetensors"
    notes = " ".join(results["data"]["notes"])
    for said in ("notes.txt", "30%", damaged.name, "--init none"):
        assert said in notes, said
        assert said in (out / "log.txt").read_text("utf-8")
    assert damaged.name in (out / "left_out.txt").read_text("utf-8")

    weights = str(out / "model.safetensors")
    (own / "test" / "unlabelled.txt").touch()
    shutil.rmtree(root)
    words = ["evaluate", weights, "--data-dir", str(own), "--device", "cpu"]
    assert commands.main([*words, "--out", str(tmp_path / "evaluation")]) == 0
    found = json.loads((tmp_path / "evaluation" / "results.json").read_text("utf-8"))
    assert found["evaluation"]["images"] == 18


@pytest.mark.parametrize("model, size", [("resnet18", "64"), ("my_nets:small", "24")])
def test_another_network_at_another_size_is_trained_evaluated_and_asked(
    own, tmp_path, capsys, monkeypatch, model, size
):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def small(classes):\n"
        "    layers = nn.Conv2d(3, 4, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()\n"
        "    return nn.Sequential(*layers, nn.Linear(16, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["--data-dir", str(own), "--model", model, "--image-size", size, "--resize", "pad"]
    words += ["--epochs", "1", "--lr-max", "0.003", "--device", "cpu", "--precision", "float32"]
    assert commands.main(["train", *words, "--out", "run"]) == 0
    first = json.loads(Path("run/results.json").read_text("utf-8"))
    capsys.readouterr()
    words = ["evaluate", "run", "--data-dir", str(own), "--device", "cpu"]
    assert commands.main([*words, "--out", "again"]) == 0
    again = json.loads(Path("again/results.json").read_text("utf-8"))
    assert again["evaluation"]["confusion"] == first["evaluation"]["confusion"]
    assert commands.main(["predict", str(own / "test"), "--weights", "run"]) == 0
    assert capsys.readouterr().out.count("%") == 18 * 3 + 1
    if ":" in model:
        Path("my_nets.py").write_text("")
        sys.modules.pop("my_nets")
        assert commands.main(["predict", str(own / "test"), "--weights", "run"]) == 2
        assert "--model my_nets:small" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["os:abort", "torch:zeros", "torch:add"])
def test_a_name_of_something_else_than_a_network_is_refused(name):
    with pytest.raises(UsageError, match=name):  # a file of weights may name anything
        find_model(name)(2)
