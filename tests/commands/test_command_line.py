import argparse
import dataclasses
import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import onecycle
from onecycle import commands
from onecycle.commands import images, options
from onecycle.commands.common import command_of, run_command
from onecycle.errors import DataError, UsageError
from onecycle.recipe import PRESETS, Recipe, read_recipe
from onecycle.training.compute import PRECISIONS

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {
    "--epochs": (["1", "24"], ["0", "-1", "nan", "1.5", "x", "", "99999999999"]),
    "--peak-epoch": (["0.5"], ["0", "-2", "nan", "inf", "x"]),
    "--batch-size": (["2", "512"], ["0", "-1", "1", "1e3", "x", "10000000"]),
    "--lr-max": (["0.01", "1e-3"], ["0", "-0.1", "nan", "inf", "x", "1000"]),
    "--weight-decay": (["0", "0.2"], ["-1", "nan", "inf", "x"]),
    "--beta2": (["0.9"], ["1", "-0.1", "nan", "2"]),
    "--label-smoothing": (["0", "0.1"], ["1", "-0.1", "nan", "x"]),
    "--flip-probability": (["0", "1"], ["-0.1", "1.1", "nan", "x"]),
    "--cutout-size-px": (["0", "8"], ["-1", "5000", "1.5"]),
    "--image-size": (["64"], ["7", "x"]),
    "--body-rate": (["0.1"], ["-1", "1.1"]),
    "--val-share": (["0.3"], ["0", "1", "nan"]),
    "--finder-steps": (["20"], ["19", "1e2", "-1"]),
    "--finder-sweeps": (["1"], ["0", "1.5", "x"]),
    "--finder-start-lr": (["1e-6"], ["0", "nan", "101"]),
    "--finder-end-lr": (["1"], ["101", "inf", "1e-6"]),
    "--lr-ratio": (["10"], ["1", "inf", "nan"]),
    "--beta1": (["0.8"], ["1", "x"]),
    "--beta1-at-peak": (["0.5"], ["0.91", "nan"]),
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
    "--compile": (["off"], ["auto", "on", "", "default", "fused", "max"]),
    "--preset": (["assignment", "digits"], ["", "digit", "none"]),
    "--padding": (["constant"], ["zero", ""]),
    "--optimizer": (["adam"], ["sgd", "", "muon"]),
    "--augmentation": (["batched", "albumentations"], ["none", "", "torch"]),
}
JUNK = ["--", "-x", "--no-such", "extra", "--epochs", "\u30c7\u30fc\u30bf", "--lr-max=--", "\0"]
OPTIONS = NUMBERS | NAMES


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The exit code of a command line, whether it came to loading data, and what it said."""
    loaded = []

    def load_images(args, group):
        loaded.append(args)
        raise DataError("reached the data")

    monkeypatch.setattr(images, "load_images", load_images)

    def run(arguments):
        loaded.clear()
        code = commands.main(["train", *arguments, "--out", str(tmp_path / "run")])
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


def test_nor_are_they_for_the_other_commands():
    for command, option in (("evaluate", "--device"), ("predict", "--weights")):
        with pytest.raises(UsageError, match=f"{option}: expected one argument"):
            commands.parse([command, "x", f"{option}=--"])


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
        assert error.startswith(("pytest", "python", "-c")), error
        assert error.count("\n") == 1 and code == (3 if loaded else 2), (arguments, error)
        related = {"--peak-epoch", "--finder-start-lr", "--finder-end-lr", "--beta1-at-peak"}
        if all_good is not None and not related & set(arguments):
            assert loaded == all_good, (arguments, error)
        reached += loaded
    assert reached > 10


def test_a_command_is_told_in_letters_that_every_file_can_hold():
    command = command_of(["train", "--out", "a b/\udcff", "--data-dir", "猫"])
    assert command.encode().decode() == r"onecycle train --out $'a b/\377' --data-dir '猫'"


def test_a_name_that_standard_output_cannot_write_ends_nothing(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    assert run_command(lambda: print("the run is in ö"), kept="nothing") == 0
    assert written.getvalue().splitlines() == [rb"the run is in \xf6"]


def test_every_field_of_the_recipe_is_an_option():
    default = commands.parse(["train"])
    assert default.recipe == Recipe()
    for field in dataclasses.fields(Recipe):
        option = f"--{field.name.replace('_', '-')}"
        value = {"optimizer": "muon", "padding": "reflect", "peak_epoch": 3, "lr_max": 0.01,
                 "beta1_at_peak": 0.5, "lr_min": 1e-3, "epochs": 25, "batch_size": 64,
                 "cutout_size_px": 4, "image_size": 64, "resize": "pad", "body_rate": 0.5,
                 "class_weights": "auto", "keep": "best", "mixup": 0.2, "cutmix": 1.0,
                 "clip_norm": 1.0, "lr_ratio": 30, "finder_end_lr": 1.5, "finder_sweeps": 2,
                 "finder_steps": 30, "head_rate": 0.5, "start": "whitened",
                 "decay_per_step": 1e-3, "sharpness_from": 0}.get(field.name)  # fmt: skip
        if isinstance(field.default, bool):
            words, value = [option], True
        else:
            if value is None:
                value = (
                    field.default + 1 if isinstance(field.default, int) else field.default * 1.001
                )
            words = [option, str(value)]
        if value == "muon":
            words += ["--weight-decay", "0"]
        assert getattr(commands.parse(["train", *words]).recipe, field.name) == value


def test_a_switch_can_be_put_off():
    assert commands.parse(["train", "--preset", "speedrun"]).recipe.alternating_flip
    words = ["train", "--preset", "speedrun", "--no-alternating-flip"]
    assert not commands.parse(words).recipe.alternating_flip


def test_a_file_comes_after_the_preset_and_before_the_options(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 5\nbatch_size = 100\n")
    words = ["train", "--preset", "speedrun", "--recipe", str(file), "--batch-size", "50"]
    expected = dataclasses.replace(PRESETS["speedrun"], epochs=5, batch_size=50)
    assert commands.parse(words).recipe == expected


def test_the_recipe_of_a_run_can_be_taken_up_and_its_peak_moves_with_the_epochs():
    file = ROOT / "results" / "cifar10" / "results.json"
    assert commands.parse(["train", "--recipe", str(file)]).recipe == read_recipe(file)
    assert commands.parse(["train", "--recipe", str(file), "--epochs", "12"]).recipe.peak == 2.5


def test_digits_are_not_mirrored_by_a_preset_or_a_file(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"flip_probability": 0.5}')
    recipe = lambda *words: commands.parse(["train", "--dataset", "digits", *words]).recipe
    for words in ([], ["--preset", "speedrun"], ["--recipe", str(file)]):
        assert recipe(*words).flip_probability == 0 and not recipe(*words).alternating_flip
    assert recipe("--flip-probability", "0.1").flip_probability == 0.1  # who asks for it gets it


@pytest.mark.parametrize(
    ("option", "only"),
    [("--cutout-size-px=4", "8"), ("--alternating-flip", "False")],
)  # fmt: skip
def test_what_albumentations_would_leave_out_is_refused(call, option, only):
    code, loaded, error = call([option, "--augmentation", "albumentations"])
    assert (code, loaded) == (2, False)
    assert f"it must be {only} with --augmentation albumentations" in error


def test_the_choices_are_those_of_the_library():
    assert options.PRECISIONS == ("auto", *PRECISIONS)


def test_help_shows_defaults_and_bounds(capsys):
    for command, said in (
        ("train", "passes over the training images (24, more for few images); from 1 to 100000"),
        ("evaluate", "CIFAR-10's official files"),
        ("predict", "predictions per picture (5)"),
        ("export", "the .onnx file to write"),
    ):
        with pytest.raises(SystemExit) as ended:
            commands.main([command, "--help"])
        assert ended.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert shown.startswith(f"usage: onecycle {command} ") and said in shown


def test_percent_signs_in_a_meaning_are_no_format():
    parser = argparse.ArgumentParser()
    field = dataclasses.field(default=1, metadata=Recipe.__dataclass_fields__["seed"].metadata
                              | {"about": "50 % of it"})  # fmt: skip
    options.add_fields(parser, dataclasses.make_dataclass("Settings", [("share", int, field)]))
    assert "50 % of it (1)" in parser.format_help()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a command: train, evaluate, compare, predict, app, export"),
        (["trian"], "invalid choice: 'trian'"),
        (["--no-such"], "--no-such is unknown; see onecycle --help"),
        (["train", "--batchsize", "3"], "--batchsize is unknown; did you mean --batch-size"),
        (["train", "--no-such=3"], "--no-such is unknown; see onecycle train --help"),
        (["train", "--recipe", "gone.toml"], "cannot read the recipe gone.toml: No such file"),
        (["train", "extra"], "extra is unknown; see onecycle train --help"),
        (["evaluate"], "required: WEIGHTS"),
    ],
)  # fmt: skip
def test_what_is_no_command_is_one_line(capsys, words, said):
    assert commands.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and said in shown.err


QUICK = """
import sys
from onecycle.commands import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
heavy = {"torch", "torchvision", "matplotlib", "sklearn", "numpy", "PIL", "tqdm"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0), (["--version"], 0), (["train", "--help"], 0), (["predict", "--help"], 0),
        (["train", "--epochs", "0"], 2), (["train", "--no-such"], 2), (["train", "--workers", "-1"], 2),
        (["train", "--recipe", "gone.toml"], 2), (["train", "--device", "tpu"], 2),
        (["train", "--resume", "gone.ckpt"], 4), ([], 2), (["evaluate", "README.md", "--limit-test", "0"], 2),
        (["evaluate", "gone.safetensors"], 4), (["predict", "x", "--top", "0"], 2),
        (["export", "gone.safetensors", "x.onnx"], 4), (["app", "gone.safetensors"], 4),
        (["app", "README.md", "--port", "0"], 2), (["compare", "runs/one"], 2),
        (["train", "--seeds", "0-"], 2), (["train", "--seeds", "0-1", "--seed", "1"], 2),
    ],
)  # fmt: skip
def test_help_and_refusals_do_not_wait_for_torch(words, code):
    done = subprocess.run(
        [sys.executable, "-c", QUICK, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "onecycle", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"onecycle {onecycle.__version__}\n", "")
    done = subprocess.run(
        [sys.executable, "-m", "onecycle", "train", "--epochs", "0"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "onecycle: epochs is 0; it must be from 1 to 100000\n"


FRONT = """
import sys
from onecycle import PRESETS, Recipe, UsageError
assert not {"torch", "numpy", "matplotlib", "torchvision", "sklearn"} & set(sys.modules)
"""


def test_a_recipe_does_not_wait_for_torch():
    subprocess.run([sys.executable, "-c", FRONT], cwd=ROOT, check=True)


def test_the_front_has_what_it_names_and_nothing_else():
    assert set(onecycle.__all__) <= set(dir(onecycle))
    for name in set(onecycle.__all__) - {"PRESETS"}:
        assert getattr(onecycle, name).__name__ == name
    with pytest.raises(AttributeError, match="'onecycle' has no attribute 'Runs'"):
        _ = onecycle.Runs


def test_foreign_modules_in_the_folder_break_nothing(tmp_path):
    for name in ("data", "utils", "errors", "recipe", "visualize", "transformation"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("CustomResNets = 1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = lambda *words: subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    done = start("-c", "from onecycle import Run, Recipe, load_digits; load_digits()")
    assert (done.returncode, done.stderr) == (0, "")
    weights = ROOT / "onecycle" / "weights" / "custom_resnet_cifar10.safetensors"
    done = start("-m", "onecycle", "predict", "x.png", "--weights", str(weights))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "no models of its own" in done.stderr
