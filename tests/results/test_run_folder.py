import copy
import csv
import dataclasses
import errno
import io
import json
import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from models import CustomResNet
from onecycle.errors import CheckpointError, RunError, StorageError
from onecycle.records import EpochRecord, History, StepRecord
from onecycle.results.evaluation import evaluate_predictions
from onecycle.results.folder import (
    own_folder,
    prepare_folder,
    results_of,
    write_evaluation,
    write_run,
)
from onecycle.results.reading import read_history
from onecycle.results.reading import read_results as folder_results
from onecycle.results.weights import save_weights
from onecycle.training.compute import Compute, to_device

WRITTEN = (
    "classes.csv", "errors.csv", "figures/history.png", "figures/samples.png", "history.csv",
    "log.txt", "model.pt", "report.html", "results.json", "steps.csv",
)  # fmt: skip
CALLS = range(len(WRITTEN))
LAST_EPOCH = EpochRecord(
    epoch=2, lr=1e-17, train_loss=2 / 3, train_accuracy=0.1 + 0.2, test_loss=1 / 7,
    test_accuracy=5 / 6, train_seconds=4.25, test_seconds=0.75,
)  # fmt: skip
# The better one is not the last, so that a choice on the test images would show.
EPOCHS = [
    EpochRecord(
        epoch=1, lr=1 / 3, train_loss=1.5, train_accuracy=0.7, test_loss=0.01,
        test_accuracy=0.999, train_seconds=8.5, test_seconds=0.5,
    ),
    LAST_EPOCH,
]  # fmt: skip
STEPS = [StepRecord(step=step, lr=0.1 / (step + 3), loss=2 / (step + 7)) for step in range(6)]
LOG = ["CIFAR-10 · 50,000 images", "", "a table\nof two rows"]


LABELS = np.array([0, 0, 0, 1, 1, 3, 1])
# Nothing is a "two", though something is predicted as it.
PREDICTED = np.array([0, 0, 1, 1, 2, 3, 0])
ABOUT = {
    "recipe": {"epochs": 2, "lr_max": None, "weight_decay": 0.2},
    "data": {
        "source": "digits",
        "classes": ["zero", "one", "two", "three, with a comma 猫"],
        "mean": [0.1, 1 / 3, 0.3],
        "std": [0.2, 0.2, 0.2],
        "num_test": 7,
    },
    "learning_rate": {"lr_max": 0.01, "lr_min": 1 / 3000, "losses": [2.3, 1.9], "rule": "so"},
    "machine": {"device": "cpu", "threads": 1, "precision": "float32", "versions": {}},
}


@pytest.fixture
def evaluation():
    probabilities = np.full((7, 4), 0.1)
    probabilities[np.arange(7), PREDICTED] = 0.7
    return evaluate_predictions(probabilities, LABELS, ABOUT["data"]["classes"])


@pytest.fixture
def arguments(evaluation):
    torch.manual_seed(0)
    history = History(list(EPOCHS), list(STEPS))
    return {
        "results": results_of(copy.deepcopy(ABOUT), history, evaluation),
        "model": nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 2)),
        "history": history,
        "evaluation": evaluation,
        "log": list(LOG),
        "figures": {name: Figure(figsize=(0.4, 0.4)) for name in ("history", "samples")},
        "report": "<!doctype html><p>猫</p>\n",
    }


def contents(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def read_results(folder):
    text = (folder / "results.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse_constant)


def read_csv(file):
    with open(file, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        return reader.fieldnames, [
            {name: json.loads(value) for name, value in row.items()} for row in reader
        ]


def fail_at(number, function, reason=errno.ENOSPC):
    """``function``, whose call of that number (from 0) fails."""
    calls = iter(range(1000))

    def failing(*args, **kwargs):
        if next(calls) == number:
            raise OSError(reason, os.strerror(reason))
        return function(*args, **kwargs)

    return failing


@pytest.mark.parametrize("kind", [Path, str])
def test_run_is_exactly_the_documented_files_in_a_folder_that_is_made(tmp_path, arguments, kind):
    out = tmp_path / "runs" / "first"
    assert write_run(kind(out), **arguments) == out
    assert sorted(contents(out)) == sorted(WRITTEN)


def test_results_hold_what_the_run_was_told(tmp_path, arguments):
    results = read_results(write_run(tmp_path, **arguments))
    assert {part: results[part] for part in ABOUT} == ABOUT


def test_final_figures_are_the_last_epochs_and_not_the_best_ones(tmp_path, arguments):
    results = read_results(write_run(tmp_path, **arguments))
    for name in ("epoch", "test_loss", "test_accuracy", "train_accuracy"):
        assert results["final"][name] == getattr(LAST_EPOCH, name)
    assert results["seconds"] == {"train": 12.75, "test": 1.25}


def test_accuracy_of_a_class_is_its_share_of_right_images_and_null_where_it_has_none(
    tmp_path, arguments
):
    results = read_results(write_run(tmp_path, **arguments))
    assert results["final"]["class_accuracy"] == {
        "zero": 2 / 3, "one": 1 / 3, "two": None, "three, with a comma 猫": 1.0,
    }  # fmt: skip


def test_history_is_unrounded_and_the_same_in_both_files(tmp_path, arguments):
    write_run(tmp_path, **arguments)
    names, rows = read_csv(tmp_path / "history.csv")
    assert names == [
        "epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
        "train_seconds", "test_seconds",
    ]  # fmt: skip
    assert rows == read_results(tmp_path)["history"] == [dataclasses.asdict(e) for e in EPOCHS]


def test_evaluation_tables_and_report_are_written_as_they_are_given(tmp_path, arguments):
    written = contents(write_run(tmp_path, **arguments))
    summary = arguments["evaluation"].summary()
    assert read_results(tmp_path)["evaluation"] == json.loads(json.dumps(summary))
    errors = written["errors.csv"].decode().splitlines()
    assert errors[0] == "index,true,predicted,probability_true,probability_predicted"
    assert [line.split(",")[:3] for line in errors[1:]] == [
        ["2", "zero", "one"], ["4", "one", "two"], ["6", "one", "zero"],
    ]  # fmt: skip
    assert '"three, with a comma 猫",1.0,1.0,1.0,1' in written["classes.csv"].decode()
    assert written["report.html"].decode() == arguments["report"]


@pytest.mark.parametrize("number", range(4))
def test_evaluation_alone_is_written_with_its_results_last(
    tmp_path, evaluation, monkeypatch, number
):
    given = ({"a": 1}, evaluation, "<p>")
    out = write_evaluation(tmp_path / "whole" / "one", *given)
    whole = contents(out)
    names = ["errors.csv", "classes.csv", "report.html", "results.json"]
    assert sorted(whole) == sorted(names) and whole["results.json"] == b'{\n "a": 1\n}\n'
    with pytest.raises(StorageError, match="holds a finished run"):
        prepare_folder(out)
    monkeypatch.setattr(os, "replace", fail_at(number, os.replace))
    with pytest.raises(StorageError, match="No space left"):
        write_evaluation(tmp_path / "part", *given)
    assert set(contents(tmp_path / "part")) == set(names[:number])


def test_a_history_is_read_as_it_was_written(tmp_path, arguments):
    write_run(tmp_path, **arguments)
    history, lines = read_history(tmp_path, read_results(tmp_path))
    assert history.epochs == EPOCHS and history.steps == STEPS
    assert lines == "\n".join(LOG).split("\n")


def test_results_that_cannot_be_read_are_never_taken_for_none(tmp_path):
    assert folder_results(tmp_path) == folder_results(tmp_path / "missing") == {}
    for text in ("", "{}", "[1, 2]", "{", "null", '"text"', "[" * 100_000):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(CheckpointError, match="holds no results"):
            folder_results(tmp_path)
    (tmp_path / "results.json").unlink()
    (tmp_path / "results.json").mkdir()
    with pytest.raises(CheckpointError, match="Is a directory"):
        folder_results(tmp_path)


@pytest.mark.parametrize("is_new", [False, True])
def test_a_folder_in_which_nothing_was_written_goes_again_if_it_is_new(tmp_path, is_new):
    folder = tmp_path / "runs" / "one"
    if not is_new:
        folder.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), own_folder(folder):
        raise ZeroDivisionError
    assert folder.exists() != is_new
    with own_folder(folder) as warning:
        assert warning is None
        (folder / "mine").touch()
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_steps_are_unrounded_and_numbered_from_zero(tmp_path, arguments):
    write_run(tmp_path, **arguments)
    names, rows = read_csv(tmp_path / "steps.csv")
    assert names == ["step", "lr", "loss"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows == [dataclasses.asdict(step) for step in STEPS]


def test_log_file_is_the_lines_one_after_the_other(tmp_path, arguments):
    write_run(tmp_path, **arguments | {"log": iter(LOG)})
    assert (tmp_path / "log.txt").read_bytes().decode("utf-8") == "\n".join(LOG) + "\n"


def test_weights_load_without_pickled_code_and_come_with_recipe_and_data(tmp_path, arguments):
    write_run(tmp_path, **arguments)
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert saved["recipe"] == ABOUT["recipe"] and saved["data"] == ABOUT["data"]
    expected = arguments["model"].state_dict()
    assert list(saved["state_dict"]) == list(expected)
    for name, value in expected.items():
        assert saved["state_dict"][name].dtype == value.dtype
        assert torch.equal(saved["state_dict"][name], value)


def test_weights_of_the_trained_network_load_strictly_into_a_new_one(tmp_path, arguments):
    trained = to_device(CustomResNet(num_classes=4), torch.device("cpu"))
    write_run(tmp_path, **arguments | {"model": trained})
    saved = torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]
    fresh = CustomResNet(num_classes=4)
    fresh.load_state_dict(saved, strict=True)
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    # A file in the layout of one machine would carry it to all others.
    assert all(value.is_contiguous() for value in saved.values())


def test_figures_are_pngs_of_their_names(tmp_path, arguments):
    arguments["figures"]["samples"].set_facecolor("red")
    written = contents(write_run(tmp_path, **arguments))
    for name, figure in arguments["figures"].items():
        expected = io.BytesIO()
        figure.savefig(expected, format="png", dpi=150)
        assert written[f"figures/{name}.png"] == expected.getvalue()
        assert expected.getvalue().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    "call, number", [*(("replace", number) for number in CALLS), ("fsync", 0), ("fsync", CALLS[-1])]
)
def test_full_disk_leaves_whole_files_and_no_results(
    tmp_path, arguments, monkeypatch, call, number
):
    new = contents(write_run(tmp_path / "reference", **arguments))
    out = tmp_path / "run"
    (out / "figures").mkdir(parents=True)
    old = {name: f"old {name}".encode() for name in WRITTEN if name != "results.json"}
    old |= {"notes.txt": b"mine", "figures/mine.png": b"mine too", ".part": b"and mine"}
    for name, content in old.items():
        (out / name).write_bytes(content)

    monkeypatch.setattr(os, call, fail_at(number, getattr(os, call)))
    with pytest.raises(StorageError, match="No space left on device") as caught:
        write_run(out, **arguments)
    assert str(out) in str(caught.value)

    left = contents(out)
    assert sorted(left) == sorted(old)  # nothing added: no results, no half-written file
    unchanged = [name for name in old if left[name] == old[name]]
    # All before the failing one are the new run's, all after it are as they were.
    assert len(old) - len(unchanged) == number
    assert {"notes.txt", "figures/mine.png", ".part"} <= set(unchanged)
    assert all(left[name] == new[name] for name in left if name not in unchanged)


def test_a_drive_that_cannot_be_told_to_write_gets_the_run_nonetheless(
    tmp_path, arguments, monkeypatch
):
    def refuse(reason):
        def fsync(descriptor):
            raise OSError(reason, os.strerror(reason))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse(errno.EINVAL)
    assert (write_run(tmp_path / "one", **arguments) / "results.json").exists()
    file = save_weights(tmp_path / "it.safetensors", {}, data=WEIGHTS_DATA, recipe={})
    assert file.exists()
    refuse(errno.EIO)
    with pytest.raises(StorageError):
        write_run(tmp_path / "two", **arguments)
    with pytest.raises(StorageError):
        save_weights(tmp_path / "two.safetensors", {}, data=WEIGHTS_DATA, recipe={})


WEIGHTS_DATA = {"source": "s", "classes": ("a", "b"), "mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.mark.parametrize("number", CALLS)
def test_full_disk_in_a_new_folder_leaves_no_results(tmp_path, arguments, monkeypatch, number):
    monkeypatch.setattr(os, "replace", fail_at(number, os.replace))
    with pytest.raises(StorageError):
        write_run(tmp_path / "run", **arguments)
    left = contents(tmp_path / "run")
    assert len(left) == number and set(left) <= set(WRITTEN) - {"results.json"}


def test_results_never_lie_beside_files_of_another_run(tmp_path, arguments, monkeypatch):
    before = contents(write_run(tmp_path, **arguments))
    monkeypatch.setattr(os, "replace", fail_at(4, os.replace))
    with pytest.raises(StorageError):
        write_run(tmp_path, **arguments | {"log": ["another run"]})
    left = contents(tmp_path)
    assert "results.json" not in left or left == before


def test_file_in_the_place_of_the_figures_folder_is_a_storage_error(tmp_path, arguments):
    (tmp_path / "figures").write_text("mine")
    with pytest.raises(StorageError, match="cannot write"):
        write_run(tmp_path, **arguments)
    left = contents(tmp_path)
    assert left["figures"] == b"mine" and "results.json" not in left


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["history", "learning_rate", "data"])
def test_number_that_json_does_not_have_leaves_no_results(tmp_path, arguments, place, number):
    if place == "history":
        arguments["results"]["history"][-1]["test_loss"] = number
    else:
        arguments["results"][place]["losses"] = [1.0, number]
    with pytest.raises(ValueError):
        write_run(tmp_path, **arguments)
    assert set(contents(tmp_path)) <= set(WRITTEN) - {"results.json"}


@pytest.mark.parametrize("kind", [Path, str])
def test_prepared_folder_is_made_with_its_parents_and_empty(tmp_path, kind):
    out = tmp_path / "runs" / "today" / "first"
    assert prepare_folder(kind(out)) == out
    assert out.is_dir() and not list(out.iterdir())


def test_prepared_folder_keeps_what_an_unfinished_run_left(tmp_path):
    (tmp_path / "log.txt").write_text("begun")
    assert prepare_folder(tmp_path) == tmp_path
    assert contents(tmp_path) == {"log.txt": b"begun"}


def test_written_run_is_not_written_over(tmp_path, arguments):
    before = contents(write_run(prepare_folder(tmp_path / "run"), **arguments))
    with pytest.raises(StorageError, match="holds a finished run") as caught:
        prepare_folder(tmp_path / "run")
    assert str(tmp_path / "run") in str(caught.value)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("below", [".", "below/it"])
def test_file_in_the_place_of_the_folder_is_a_storage_error(tmp_path, below):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(StorageError, match="cannot write") as caught:
        prepare_folder(tmp_path / "run" / below)
    assert str(tmp_path / "run") in str(caught.value)
    assert contents(tmp_path) == {"run": b"mine"}


def test_name_that_the_file_system_refuses_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="File name too long"):
        prepare_folder(tmp_path / ("long" * 100))


# Simulated, as nothing is unwritable for root.
@pytest.mark.parametrize(
    "owner, function, reason",
    [
        (tempfile, "TemporaryFile", errno.EACCES),
        (tempfile, "TemporaryFile", errno.ENOSPC),
        (os, "mkdir", errno.EROFS),
        (os, "stat", errno.EACCES),
    ],
)
def test_folder_that_cannot_be_written_is_a_storage_error(
    tmp_path, monkeypatch, owner, function, reason
):
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, fail_at(0, getattr(owner, function), reason))
        with pytest.raises(StorageError, match=os.strerror(reason)) as caught:
            prepare_folder(tmp_path / "run")
    assert str(tmp_path / "run") in str(caught.value)


def test_storage_error_is_a_run_error_an_os_error_and_exit_code_6():
    assert issubclass(StorageError, (RunError, OSError)) and StorageError.exit_code == 6


def test_machine_is_plain_data_with_the_settings_of_the_run():
    machine = Compute(torch.device("cpu"), "bfloat16").describe()
    assert json.loads(json.dumps(machine, allow_nan=False)) == machine
    assert (machine["device"], machine["precision"]) == ("cpu", "bfloat16")
    assert machine["device_name"].strip() and "\n" not in machine["device_name"]


@pytest.mark.parametrize("threads", [1, 3])
def test_machine_names_the_threads_that_torch_uses(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert Compute(torch.device("cpu")).describe()["threads"] == threads
    finally:
        torch.set_num_threads(before)


def test_machine_names_the_true_versions():
    versions = Compute(torch.device("cpu")).describe()["versions"]
    # The build, as in 2.9.0+cpu, is not in every wheel's metadata.
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["numpy"] == np.__version__
    assert versions["python"] == platform.python_version()
    for name in ("torchvision", "albumentations", "torch-lr-finder", "matplotlib", "scikit-learn"):
        assert versions[name] == metadata.version(name)
