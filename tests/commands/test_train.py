import csv
import json
import socket

import matplotlib
import pytest
import torch
from tiny_network import WORDS, make_quick

from models import CustomResNet
from onecycle import commands, run_figures
from onecycle.commands import images, train
from onecycle.data.digits import load_digits
from onecycle.data.loaders import get_loader
from onecycle.errors import CheckpointError
from onecycle.training.compute import Compute
from onecycle.training.group import Group
from onecycle.training.inference import evaluate
from transformation import get_test_aug_transform

SMALL = [
    "--dataset", "digits", "--epochs", "2", "--batch-size", "32", "--limit-train", "192",
    "--limit-test", "50", "--lr-max", "0.004", "--device", "cpu",
]  # fmt: skip
FIGURES = run_figures.FIGURES.keys() - {"lr_finder"}


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def tiny(monkeypatch):
    make_quick(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    assert commands.main(["train", *SMALL, "--tensorboard", "--out", str(out)]) == 0
    return out


def test_a_run_leaves_everything_that_it_promises(finished):
    assert {path.stem for path in (finished / "figures").iterdir()} == FIGURES
    assert {path.name for path in finished.iterdir()} == {
        "figures", "tensorboard", "results.json", "history.csv", "steps.csv", "errors.csv",
        "classes.csv", "model.pt", "model.safetensors", "log.txt", "report.html",
    }  # fmt: skip
    results = json.loads((finished / "results.json").read_text("utf-8"))
    assert results["data"]["source"] == "digits"
    assert (results["data"]["num_train"], results["data"]["num_test"]) == (192, 50)
    assert results["learning_rate"]["lr_max"] == 0.004
    assert results["learning_rate"]["lr_min"] == 0.004 / 200
    assert results["final"]["test_accuracy"] == results["history"][-1]["test_accuracy"]
    with open(finished / "steps.csv", encoding="utf-8") as file:
        steps = list(csv.DictReader(file))
    assert [int(row["step"]) for row in steps] == list(range(12))
    assert float(steps[0]["lr"]) == pytest.approx(0.00002)
    log = (finished / "log.txt").read_text("utf-8")
    assert log.startswith("digits: 192 training images, 50 test images")
    assert "EPOCH = 2 | LR = " in log and "Total params: 6,575,370" in log


def test_the_weights_load_and_give_the_accuracy_of_the_results(finished):
    stored = torch.load(finished / "model.pt", weights_only=True)
    results = json.loads((finished / "results.json").read_text("utf-8"))
    compute = Compute.choose("cpu", results["machine"]["precision"])
    model = compute.place_model(CustomResNet())
    model.load_state_dict(stored["state_dict"])
    _, images = load_digits()
    data = stored["data"]
    images = images.sample(50).with_transform(get_test_aug_transform(data["mean"], data["std"]))
    loader = get_loader(images, 32, train=False)
    loss, accuracy = evaluate(model, loader, compute=compute)
    assert accuracy == results["final"]["test_accuracy"]
    assert loss == pytest.approx(results["final"]["test_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("given", "lr_max", "lr_min", "rule"),
    [
        (["--lr-max", "0.004"], 0.004, 0.00002, "LRMAX is given; LRMIN is LRMAX / 200"),
        (
            ["--lr-max", "0.004", "--lr-min", "0.001"],
            0.004,
            0.001,
            "LRMAX is given; LRMIN is given",
        ),
    ],
)
def test_results_say_how_the_rates_came_about(given, lr_max, lr_min, rule, tmp_path):
    arguments = ["--dataset", "digits", "--limit-train", "48", "--limit-test", "10",
                 "--batch-size", "16", "--epochs", "1", "--out", str(tmp_path / "run")]  # fmt: skip
    assert commands.main(["train", *arguments, *given]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert results["learning_rate"] == {"lr_max": lr_max, "lr_min": lr_min, "rule": rule}


def test_the_same_command_gives_the_same_numbers(finished, tmp_path, offline):
    assert commands.main(["train", *SMALL, "--out", str(tmp_path / "two")]) == 0
    for name in ("steps.csv", "model.pt"):
        assert (finished / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_validation_images_come_from_the_training_images():
    parse = lambda *words: commands.parse(["train", "--dataset", "digits", *words])
    rest, held_out = images.load_images(parse("--val", "137"))
    everything, _ = images.load_images(parse())
    assert (len(rest), len(held_out), held_out.name) == (1300, 137, "held-out training images")
    pixels = lambda of: sorted(image.tobytes() for image in of.data)
    assert pixels(everything) == sorted(pixels(rest) + pixels(held_out))


def test_the_peak_moves_with_the_length_unless_it_is_given():
    recipe = lambda *words: commands.parse(["train", *words]).recipe
    assert recipe("--epochs", "24").peak == 5
    assert recipe("--epochs", "12").peak == 2.5
    assert recipe("--epochs", "12", "--peak-epoch", "4").peak == 4
    assert recipe("--dataset", "digits").batch_size == 64


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--epochs", "0"], 2, "epochs is 0"),
        (["--epochs", "many"], 2, "--epochs"),
        (["--epochs", "24", "--peak-epoch", "24"], 2, "peak_epoch is 24"),
        (["--batch-size", "-1"], 2, "batch_size is -1"),
        (["--lr-max", "nan"], 2, "lr_max is nan"),
        (["--lr-max", "0.1", "--lr-min", "0.2"], 2, "lr_min is 0.2"),
        (["--lr-min", "-1"], 2, "lr_min is -1"),
        (["--seed", "-1"], 2, "seed is -1"),
        (["--resume", "nowhere.ckpt", "--data-dir", "nowhere"], 4, "nowhere.ckpt does not exist"),
        (["--workers", "-1"], 2, "--workers is -1"),
        (["--device", "abacus"], 2, "--device: invalid choice: 'abacus'"),
        (["--precision", "float16", "--device", "cpu"], 2, "precision is float16 on cpu"),
        (["--dataset", "mnist"], 2, "invalid choice"),
        (["--no-such-option"], 2, "--no-such-option is unknown"),
        (["--data-dir", "nowhere"], 3, "nowhere does not exist: give the folder"),
        (["--dataset", "digits", "--val", "5000"], 2, "--val is 5000"),
        (["--dataset", "digits", "--limit-train", "0"], 2, "--limit-train is 0"),
        (["--dataset", "digits", "--batch-size", "2000"], 2, "batch_size is 2000, more than the 1437"),
        (["--dataset", "digits", "--batch-size", "1000", "--epochs", "1"], 2, "only 2 steps in all"),
        (["--dataset", "digits", "--out", "train.py"], 6, "train.py"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_an_exit_code(argv, code, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("precious")
    assert commands.main(["train", *argv]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (tmp_path / "train.py").read_text() == "precious"


def test_a_folder_that_was_there_stays_when_a_run_is_refused(tmp_path):
    assert commands.main(["train", "--data-dir", "nowhere", "--out", str(tmp_path / "new")]) == 3
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    assert commands.main(["train", "--data-dir", "nowhere", "--out", str(tmp_path / "mine")]) == 3
    assert (tmp_path / "mine").exists()


def test_fewer_images_than_the_samples_figure_shows_are_enough(tmp_path):
    arguments = ["--dataset", "digits", "--limit-train", "12", "--limit-test", "10", "--lr-max",
                 "0.01", "--batch-size", "4", "--epochs", "1", "--out", str(tmp_path / "run")]  # fmt: skip
    assert commands.main(["train", *arguments]) == 0


def test_the_speedrun_has_no_albumentations_path(tmp_path, capsys):
    arguments = ["--preset", "speedrun", "--augmentation", "albumentations"]
    assert commands.main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert "batched" in capsys.readouterr().err


class Second(Group):
    """The second of two processes; the first has a finished run, or a checkpoint."""

    def __init__(self, results):
        super().__init__(torch.device("cpu"), 1, 2, 1)
        self.results = results

    def same(self, value):
        return self.results

    def sum(self, tensor, *what):
        return tensor + 1

    def compare(self, values):
        pass


def run_in(group, out):
    return train.train(commands.parse(["train", *SMALL, "--out", str(out)]), group)


def test_all_processes_leave_a_finished_run_alone(finished, capsys):
    results = json.loads((finished / "results.json").read_text("utf-8"))
    assert run_in(Second(results), finished) == 0
    assert capsys.readouterr().out == ""


def test_a_process_that_does_not_see_the_checkpoint_of_the_first_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="all machines share"):
        run_in(Second({}), tmp_path)


def test_images_that_do_not_fit_the_device_stay_in_memory(tiny, monkeypatch, tmp_path):
    assert commands.main([*WORDS, "--out", str(tmp_path / "one")]) == 0
    monkeypatch.setattr("onecycle.run_parts.fits_device", lambda *_: False)
    assert commands.main([*WORDS, "--out", str(tmp_path / "two")]) == 0
    steps = [(tmp_path / name / "steps.csv").read_bytes() for name in ("one", "two")]
    assert steps[0] == steps[1]


def test_workers_that_would_load_nothing_are_told_of_once(tiny, tmp_path, capsys):
    assert commands.main([*WORDS, "--workers", "2", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err.count("--workers has no effect") == 1


def test_results_of_an_evaluation_are_no_finished_run(finished, tmp_path, capsys):
    # An evaluation writes them with the recipe and the images of the weights, but without a history.
    results = json.loads((finished / "results.json").read_text("utf-8"))
    del results["history"]
    (tmp_path / "results.json").write_text(json.dumps(results), "utf-8")
    assert commands.main(["train", *SMALL, "--out", str(tmp_path)]) == 6
    assert "holds a finished run" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"recipe": null}', '{"history": []}'])
def test_results_that_are_none_are_not_written_over(tmp_path, capsys, content):
    (tmp_path / "results.json").write_text(content)
    assert commands.main([*WORDS, "--out", str(tmp_path)]) == 4
    error = capsys.readouterr().err
    assert "holds no results of a run" in error and error.count("\n") == 1
    assert (tmp_path / "results.json").read_text() == content


def test_a_recipe_from_the_results_of_a_run_gives_its_numbers(tiny, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert commands.main([*WORDS, "--beta2", "0.9", "--out", str(first)]) == 0
    words = ["train", "--dataset", "digits", "--limit-train", "64", "--limit-test", "20",
             "--device", "cpu", "--precision", "float32"]  # fmt: skip
    words += ["--recipe", str(first / "results.json"), "--out", str(second)]
    assert commands.main(words) == 0
    for name in ("steps.csv", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_report_has_the_command_and_the_last_line_says_where_it_is(tiny, tmp_path, capsys):
    out = tmp_path / "run"
    assert commands.main([*WORDS, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"Open {out / 'report.html'}"
    assert f"new run in {out}" in shown.err
    page = (out / "report.html").read_text("utf-8")
    assert "onecycle train --dataset digits --epochs 3" in page and str(out) in page


def test_a_training_leaves_the_backend_of_matplotlib_as_it_is(tiny, tmp_path, monkeypatch):
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        assert commands.main([*WORDS, "--out", str(tmp_path)]) == 0
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)
