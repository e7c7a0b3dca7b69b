import csv
import json

import numpy as np
import pytest
import torch

from models import CustomResNet
from onecycle import commands
from onecycle.commands import images
from onecycle.data.digits import load_digits
from onecycle.results.weights import save_weights

DIGITS = tuple(str(k) for k in range(10))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    return save_weights(
        tmp_path_factory.mktemp("weights") / "mine.safetensors",
        CustomResNet().state_dict(),
        data={"source": "digits", "classes": DIGITS, "mean": (0.3,) * 3, "std": (0.4,) * 3},
        recipe={"epochs": 1, "seed": 0, "flip_probability": 0.5},
    )


def run(weights, out, *options):
    words = [str(weights), "--dataset", "digits", "--out", str(out), *options]
    return commands.main(["evaluate", *words])


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    assert run(weights, out, "--limit-test", "30", "--device", "cpu") == 0
    return out


def test_folder_holds_report_errors_classes_and_results_that_agree(folder, weights):
    assert {file.name for file in folder.iterdir()} == {
        "report.html", "errors.csv", "classes.csv", "results.json",
    }  # fmt: skip
    results = json.loads((folder / "results.json").read_text("utf-8"))
    evaluation = results["evaluation"]
    with open(folder / "errors.csv", newline="", encoding="utf-8") as stream:
        errors = list(csv.DictReader(stream))
    assert evaluation["images"] == 30 and evaluation["errors"] == len(errors) > 0
    assert evaluation["accuracy"] == pytest.approx(1 - len(errors) / 30)
    assert results["machine"]["precision"] == "float32"
    assert results["weights"]["file"] == "mine.safetensors"
    html = (folder / "report.html").read_text("utf-8")
    assert f"{evaluation['accuracy']:.2%}" in html and "layer3" in html
    assert "onecycle evaluate" in html and "mine.safetensors" in html


def test_errors_are_named_by_their_place_among_all_the_images(folder):
    _, test = load_digits()
    with open(folder / "errors.csv", newline="", encoding="utf-8") as stream:
        errors = list(csv.DictReader(stream))
    for error in errors:
        (place,) = np.flatnonzero(test.indices == int(error["index"]))
        assert DIGITS[test.targets[place]] == error["true"]


def test_accuracy_is_that_of_the_network_on_these_images(folder, weights):
    _, test = load_digits()
    test = test.sample(30)
    images = torch.from_numpy(test.data.transpose(0, 3, 1, 2).copy()).float() / 255
    with torch.no_grad():
        predicted = CustomResNet.from_pretrained(weights)((images - 0.3) / 0.4).argmax(1).numpy()
    evaluation = json.loads((folder / "results.json").read_text("utf-8"))["evaluation"]
    assert evaluation["accuracy"] == np.mean(predicted == test.targets)


def test_accuracy_line_names_images_and_format(folder, weights, capsys, tmp_path):
    assert run(weights, tmp_path / "out", "--limit-test", "4", "--device", "cpu") == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("Accuracy ") and "/4), loss " in line
    assert line.endswith("digits, test images, float32")


def test_images_are_looked_for_as_in_training(weights, tmp_path, capsys, monkeypatch):
    asked = []

    def load_cifar10(folder, *, download, **options):
        asked.append((folder, download))
        return load_digits()

    monkeypatch.setattr("onecycle.data.cifar10.load_cifar10", load_cifar10)
    options = ["--dataset", "cifar10", "--data-dir", "here", "--download", "--limit-test", "2"]
    assert run(weights, tmp_path / "out", *options) == 0
    assert asked == [("here", True)]


def test_finished_run_is_not_written_over(folder, weights, capsys, monkeypatch):
    monkeypatch.setattr(images, "load_dataset", None)  # refused before that
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert run(weights, folder) == 6
    assert "holds a finished run" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize(
    "options, code, found",
    [
        (["--dataset", "svhn"], 2, "invalid choice"),
        (["--limit-test", "0"], 2, "--limit-test is 0"),
        (["--limit-test", "361"], 2, "--limit-test is 361; it must be from 1 to 360"),
        (["--device", "tpu"], 2, "--device: invalid choice"),
        (["--device", "mps"], 2, "this machine has"),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], 3, "nowhere"),
    ],
)
def test_wrong_option_is_one_line_and_leaves_nothing(
    weights, tmp_path, capsys, options, code, found
):
    assert run(weights, tmp_path / "out", *options) == code
    said = capsys.readouterr().err.strip()
    assert found in said and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_does_not_say_whether_it_mirrors_is_not_mirrored(tmp_path):
    data = {"source": "mine", "classes": DIGITS, "mean": (0.3,) * 3, "std": (0.4,) * 3}
    recipe = {"flip_probability": None}
    file = tmp_path / "other.safetensors"
    save_weights(file, CustomResNet().state_dict(), data=data, recipe=recipe)
    assert run(file, tmp_path / "out", "--limit-test", "4", "--device", "cpu") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert results["evaluation"]["mirrored_accuracy"] is None


def test_weights_for_other_classes_are_one_line_and_leave_nothing(weights, tmp_path, capsys):
    other = save_weights(
        tmp_path / "other.safetensors",
        CustomResNet(2).state_dict(),
        data={"source": "mine", "classes": ("a", "b"), "mean": (0.3,) * 3, "std": (0.4,) * 3},
        recipe={},
    )
    assert run(other, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "2 classes (a, b)" in said and "10 classes (0, 1, 2, …)" in said
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_there_are_told_before_anything_else(tmp_path, capsys):
    assert run(tmp_path / "gone.safetensors", tmp_path / "out") == 4
    assert "gone.safetensors does not exist; give" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_one_line_and_leave_nothing(weights, tmp_path, capsys):
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    damaged.write_bytes(content)
    assert run(damaged, tmp_path / "out") == 4
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_stopped_training_is_left_to_it(weights, tmp_path, capsys):
    (tmp_path / "last.ckpt").touch()
    assert run(weights, tmp_path, "--limit-test", "2") == 6
    assert "stopped training" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
