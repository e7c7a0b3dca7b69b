"""A folder of own pictures: trained by the command line, and its weights name new ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from onecycle import commands
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
    arguments = ["--epochs", "10", "--batch-size", "12", "--lr-max", "0.003", "--out", str(out)]
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
