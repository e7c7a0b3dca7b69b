import io
import os
import random
import sys

import pytest

from onecycle import training_run
from onecycle.commands import evaluate, predict, train
from onecycle.commands.common import command_of, run_command
from onecycle.errors import DataError, UsageError

NUMBERS = {
    "--epochs": (["1", "24"], ["0", "-1", "nan", "1.5", "x", "", "99999999999"]),
    "--peak-epoch": (["0.5"], ["0", "-2", "nan", "inf", "24", "x"]),
    "--batch-size": (["2", "512"], ["0", "-1", "1", "1e3", "x", "10000000"]),
    "--lr-max": (["0.01", "1e-3"], ["0", "-0.1", "nan", "inf", "x", "1000"]),
    "--weight-decay": (["0", "0.2"], ["-1", "nan", "inf", "x"]),
    "--beta2": (["0.9"], ["1", "-0.1", "nan", "2"]),
    "--label-smoothing": (["0", "0.1"], ["1", "-0.1", "nan", "x"]),
    "--seed": (["0", "7"], ["-1", "4294967296", "1.0", "x"]),
    "--workers": (["0", "2"], ["-1", "x", "0.5"]),
    "--limit-train": (["100"], ["0", "-5", "x"]),
    "--limit-test": (["100"], ["0", "-5", "1.5"]),
    "--val": (["10"], ["0", "-1", "x"]),
    "--save-minutes": (["0", "5"], ["-1", "nan", "inf", "x"]),
}
NAMES = {
    "--dataset": (["cifar10", "digits"], ["", "cifar", "CIFAR10", "../digits"]),
    "--device": (["auto", "cpu"], ["gpu", "", "cuda:99", "tpu"]),
    "--precision": (["auto", "float32", "bfloat16"], ["fp32", "", "float16", "half"]),
    "--compile": (["off"], ["auto", "on", "", "default", "max"]),
    "--augmentation": (["batched", "albumentations"], ["none", "", "torch"]),
}
JUNK = ["--", "-x", "--no-such", "extra", "--epochs", "\u30c7\u30fc\u30bf", "--lr-max=--", "\0"]
OPTIONS = NUMBERS | NAMES


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The exit code of a command line, whether it came to loading data, and what it said."""
    loaded = []

    def load_images(args):
        loaded.append(args)
        raise DataError("reached the data")

    monkeypatch.setattr(training_run, "load_images", load_images)

    def run(arguments):
        loaded.clear()
        code = train.main([*arguments, "--out", str(tmp_path / "run")])
        said = capsys.readouterr()
        assert said.out == "" and not (tmp_path / "run").exists()
        return code, bool(loaded), said.err

    return run


@pytest.mark.parametrize(
    ("option", "value"), [(name, bad) for name, (_, all_bad) in OPTIONS.items() for bad in all_bad]
)
def test_a_bad_value_is_refused_in_one_line_before_any_data_is_loaded(call, option, value):
    code, loaded, error = call([f"{option}={value}"])
    assert (code, loaded, error.count("\n")) == (2, False, 1)
    assert option.strip("-").replace("-", "_") in error.replace("-", "_")


@pytest.mark.parametrize("option", ["--lr-max", "--device", "--data-dir", "--resume"])
def test_two_dashes_are_no_value(call, option):
    code, loaded, error = call([f"{option}=--"])
    assert (code, loaded) == (2, False) and f"argument {option}: expected one argument" in error


def test_nor_are_they_for_the_other_programs():
    for script, option in ((evaluate, "--device"), (predict, "--weights")):
        with pytest.raises(UsageError, match=f"{option}: expected one argument"):
            script.parse(["x", f"{option}=--"])


def test_random_command_lines_never_end_in_a_traceback(call):
    draw, reached = random.Random(0), 0
    for _ in range(int(os.environ.get("COMMAND_LINES", "60"))):
        arguments, all_good = [], True
        for option in draw.sample(sorted(OPTIONS), draw.randrange(6)):
            good = draw.random() < 0.8
            arguments += [option, draw.choice(OPTIONS[option][0 if good else 1])]
            all_good &= good
        if draw.random() < 0.2:
            arguments.insert(draw.randrange(len(arguments) + 1), draw.choice(JUNK))
            all_good = None  # some of it is harmless
        code, loaded, error = call(arguments)
        assert error.startswith(("pytest", "__main__", "train.py", "python", "-c")), error
        assert error.count("\n") == 1 and code == (3 if loaded else 2), (arguments, error)
        if all_good is not None and "--peak-epoch" not in arguments:
            assert loaded == all_good, (arguments, error)
        reached += loaded
    assert reached > 10


def test_a_command_is_told_in_letters_that_every_file_can_hold():
    told = command_of("train.py", ["--out", "a b/\udcff", "--data-dir", "猫"])
    assert told.encode().decode() == r"python train.py --out 'a b/\udcff' --data-dir '猫'"


def test_a_name_that_standard_output_cannot_write_ends_nothing(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    assert run_command(lambda: print("the run is in ö"), kept="nothing") == 0
    assert written.getvalue().splitlines() == [rb"the run is in \xf6"]
