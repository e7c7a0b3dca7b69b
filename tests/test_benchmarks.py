import argparse
import contextlib
import io
import json
import shlex
import subprocess
import sys
import tarfile
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import (
    accuracy,
    baseline,
    common,
    gpu,
    input,
    references,
    render,
    scaling,
    step,
    training,
)
from onecycle.errors import DataError, DivergedError, UsageError
from onecycle.optim.lr_finder import suggest_lr
from onecycle.recipe import PRESETS, Recipe

CPU = ["--device", "cpu", "--precision", "float32"]
FORM = {"benchmark", "machine", "settings", "runs", "summary"}


class Tiny(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(3, 27, 3), nn.BatchNorm2d(27), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
            nn.Flatten(), nn.Linear(27, num_classes), nn.LogSoftmax(1),
        )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CustomResNet", Tiny)
        patch.setattr(baseline, "CustomResNet", Tiny)
        patch.setattr(baseline, "own_process", lambda *b: ThreadPoolExecutor(1, "", b[0], b[1:]))
        yield


@pytest.fixture(scope="module")
def in_process(small):
    """Commands that a benchmark starts run here, on the small network."""
    mains = {"scaling.py": scaling.main, "accuracy.py": accuracy.main}

    def run(command, **options):
        if command[0] != sys.executable:
            return subprocess.run(command, **options)
        with contextlib.redirect_stdout(io.StringIO()) as text:
            mains[command[1].rsplit("/", 1)[1]](command[2:])
        return types.SimpleNamespace(returncode=0, stdout=text.getvalue(), stderr="")

    fake = types.SimpleNamespace(**{**vars(subprocess), "run": run})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "subprocess", fake)
        patch.setattr(references, "subprocess", fake)
        yield


def stored(file):
    result = json.loads(file.read_text("utf-8"))
    assert FORM <= set(result)
    assert {"device_name", "cores", "amx", "threads", "precision", "versions"} <= set(
        result["machine"]
    )
    return result


TOY = [
    "--data-dir", "digits", "--limit-train", "48", "--limit-test", "30", "--batch-size", "16",
    "--epochs", "2", "--set", "lr_max=0.01", *CPU,
]  # fmt: skip


def test_accuracy_interleaves_the_variants_and_goes_on_with_what_is_missing(tmp_path):
    file = tmp_path / "accuracy.json"
    variants = ["--variant", "ours", "--variant", "plain: weight_decay=0 beta2=0.999"]
    accuracy.main([*TOY, *variants, "--seeds", "0", "1", "--out", str(file)])
    first = stored(file)
    assert [(run["variant"], run["seed"]) for run in first["runs"]] == [
        ("ours", 0), ("plain", 0), ("ours", 1), ("plain", 1)
    ]  # fmt: skip
    assert first["recipes"]["plain"]["weight_decay"] == 0
    assert first["recipes"]["plain"]["lr_max"] == first["recipes"]["ours"]["lr_max"] == 0.01
    accuracy.main([*TOY, *variants, "--seeds", "0", "1", "2", "--out", str(file)])
    second = stored(file)
    assert second["runs"][:4] == first["runs"]
    assert [run["seed"] for run in second["runs"][4:]] == [2, 2]
    values = [run["accuracy"] for run in second["runs"] if run["variant"] == "ours"]
    row = second["summary"]["ours"]["accuracy"]
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1))
    assert (row["least"], row["count"]) == (min(values), 3)


def test_accuracy_keeps_the_range_test_from_which_the_rate_follows(tmp_path):
    file = tmp_path / "a.json"
    found = ["--set", "lr_max=none", "finder_steps=60", "finder_end_lr=10"]
    accuracy.main([*TOY, *found, "--seeds", "0", "--out", str(file)])
    result = stored(file)
    ((recipe, run),) = zip(result["recipes"].values(), result["runs"])
    lrs = np.geomspace(recipe["finder_start_lr"], recipe["finder_end_lr"], recipe["finder_steps"])
    losses = run["range_test"]
    assert suggest_lr(lrs[: len(losses)], losses).lr_max == pytest.approx(run["lr_max"])


def test_accuracy_of_the_last_epoch_alone_is_looked_at(tmp_path, monkeypatch):
    calls = []
    predict = training.predict
    monkeypatch.setattr(training, "predict", lambda *a, **k: calls.append(k) or predict(*a, **k))
    accuracy.main([*TOY, "--seeds", "0", "--out", str(tmp_path / "a.json")])
    assert [call["mirrored"] for call in calls] == [True]


def test_val_never_looks_at_the_test_images(tmp_path, monkeypatch):
    train, test = training.load_images("digits", 0)
    test.data[:] = 0
    monkeypatch.setattr(accuracy, "load_images", lambda *_: (train, test))
    seen = []
    loader = training.test_loader
    monkeypatch.setattr(training, "test_loader", lambda *a: seen.append(a[0]) or loader(*a))
    file = tmp_path / "a.json"
    accuracy.main([*TOY, "--val", "100", "--seeds", "0", "--out", str(file)])
    assert all(images.data.reshape(len(images), -1).any(1).all() for images in seen)
    assert stored(file)["settings"]["evaluated_on"] == "held-out training images"


def test_a_recipe_that_diverges_is_a_result_and_no_other_error(tmp_path, monkeypatch):
    file, train_once = tmp_path / "a.json", accuracy.train_once

    def failing(recipe, *arguments, **options):
        if recipe.lr_max == 99 and recipe.seed == 1:
            raise error
        return train_once(recipe, *arguments, **options)

    monkeypatch.setattr(accuracy, "train_once", failing)
    wild = ["--variant", "wild: lr_max=99", "--variant", "ours", "--seeds", "0", "1"]
    for error in (UsageError("the memory is full"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            accuracy.main([*TOY, *wild, "--out", str(file)])
        assert [run["seed"] for run in stored(file)["runs"]] == [0, 0]
    error = DivergedError("the loss is nan")
    accuracy.main([*TOY, *wild, "--out", str(file)])
    result = stored(file)
    assert [run["variant"] for run in result["runs"] if "failed" in run] == ["wild"]
    assert (result["summary"]["wild"]["failed"], result["summary"]["ours"]["failed"]) == (1, 0)
    rows = render.render_accuracy(result).splitlines()
    assert any(row.startswith("| wild | 2 | 16 | 1, 1 failed |") for row in rows)


def test_a_training_that_is_interrupted_between_two_epochs_is_no_result(tmp_path, monkeypatch):
    def interrupted(recipe, *arguments, **options):
        def on_epoch(record):
            raise KeyboardInterrupt

        return training.train_once(recipe, *arguments, **options | {"on_epoch": on_epoch})

    monkeypatch.setattr(accuracy, "train_once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        accuracy.main([*TOY, "--seeds", "0", "--out", str(tmp_path / "a.json")])
    assert not (tmp_path / "a.json").exists()


def test_the_albumentations_input_is_of_the_assignments_augmentation_alone(tmp_path):
    for option in ("cutout_size_px=0", "padding=reflect", "alternating_flip=true"):
        variant = ["--input", "albumentations", "--variant", f"a: {option}"]
        with pytest.raises(UsageError, match=option.split("=")[0]):
            accuracy.main([*TOY, *variant, "--seeds", "0", "--out", str(tmp_path / "a.json")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variant", "a: lr_mx=1"], "lr_mx"),
        (["--variant", "a: epochs=two"], "epochs is of type int"),
        (["--variant", "a", "--variant", "a: lr_max=1"], "a name of its own"),
        (["--limit-train", "40"], "num_train 48, not 40"),
        (["--variant", "a: batch_size=49"], "more than the 48 training images"),
        (["--set", "lr_max=0.02", "--variant", "ours"], "another recipe"),
    ],
)
def test_accuracy_refuses_what_would_mix_or_mean_nothing(tmp_path, options, message):
    file = tmp_path / "a.json"
    accuracy.main([*TOY, "--variant", "ours", "--seeds", "0", "--out", str(file)])
    before = file.read_text("utf-8")
    with pytest.raises(UsageError, match=message):
        accuracy.main([*TOY, *options, "--seeds", "0", "--out", str(file)])
    assert file.read_text("utf-8") == before


def test_accuracy_goes_on_with_a_file_from_before_a_field_of_the_recipe_came(tmp_path):
    file = tmp_path / "a.json"
    accuracy.main([*TOY, "--seeds", "0", "--out", str(file)])
    result = json.loads(file.read_text("utf-8"))
    for recipe in result["recipes"].values():
        del recipe["beta1_at_peak"]
    file.write_text(json.dumps(result), "utf-8")
    accuracy.main([*TOY, "--seeds", "0", "1", "--out", str(file)])
    assert [run["seed"] for run in stored(file)["runs"]] == [0, 1]


def test_accuracy_does_not_mix_the_times_of_two_kinds_of_device(tmp_path):
    file = tmp_path / "a.json"
    arguments = [*TOY, "--variant", "ours", "--seeds", "0", "--out", str(file)]
    accuracy.main(arguments)
    result = stored(file)
    result["machine"]["device"] = "cuda"
    file.write_text(json.dumps(result), "utf-8")
    with pytest.raises(UsageError, match="device cuda, not cpu"):
        accuracy.main(arguments)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, in_process):
    """Every CPU benchmark at toy size."""
    folder = tmp_path_factory.mktemp("results")
    out = lambda name: ["--out", str(folder / f"{name}.json"), *CPU]
    input.main(
        ["--images", "40", "--batch-size", "8", "--rounds", "2", "--seconds", "0.01",
         "--workers", "0", *out("input")]
    )  # fmt: skip
    step.main(
        ["--images", "48", "--batch-size", "16", "--rounds", "2", "--product", "16", "--profile",
         *out("step")]
    )  # fmt: skip
    baseline.main(["--images", "48", "--batch-size", "16", "--rounds", "2", *out("baseline")])
    scaling.main(
        ["--images", "64", "96", "--batch-size", "8", "16", "--epochs", "1", "2", "--rounds", "1",
         *out("scaling")]
    )  # fmt: skip
    return folder


def test_each_benchmark_leaves_its_runs_and_their_summary(measured):
    result = stored(measured / "input.json")
    rates = [r["images_per_s"] for r in result["runs"] if r["variant"] == "batched, 1 core"]
    assert len(rates) == 2 and min(rates) > 0
    ratio = result["summary"]["ratios"]["batched, 1 core / albumentations, 1 core"]
    assert ratio["count"] == 2 and ratio["goal"] == 5

    result = stored(measured / "step.json")
    (run,) = result["runs"]
    assert len(run["loop"]) == len(run["bare"]) == 2  # without the warm-up
    row = result["summary"]["modes"]["eager"]
    assert row["loop_over_bare"]["median"] == pytest.approx(
        np.median(np.divide(run["loop"], run["bare"]))
    )
    assert row["loop"]["tflops"] == pytest.approx(np.median(run["loop"]) * 2.272e-3)
    assert result["profile"]["operations"]

    result = stored(measured / "baseline.json")
    assert [run["round"] for run in result["runs"]] == [0, 1, 2]  # 0 is the warm-up
    ratios = [r["ours_images_per_s"] / r["plain_images_per_s"] for r in result["runs"][1:]]
    assert result["summary"]["ratio"]["median"] == pytest.approx(np.median(ratios))
    assert "AMX" in result["summary"]["goal"]

    result = stored(measured / "scaling.json")
    assert result["failed"] == {}
    assert [run["axis"] for run in result["runs"]] == sorted(
        ["images", "batch_size", "epochs"] * 2, key=scaling.AXES.index
    )


def test_the_warm_up_meets_the_two_batch_shapes_of_an_epoch(monkeypatch):
    shapes = []
    forward = Tiny.forward
    monkeypatch.setattr(Tiny, "forward", lambda self, x: shapes.append(len(x)) or forward(self, x))
    images = training.random_images(3 * 16 + 5)
    training.warm_up(Recipe(batch_size=16), images, torch.device("cpu"), "float32", None)
    assert set(shapes) == {16, 5}


def test_the_line_of_least_squares():
    line = common.line_through([1, 2, 4], [3.0, 5.0, 9.0])
    assert (line["slope"], line["intercept"]) == pytest.approx((2, 1))
    assert line["r2"] == pytest.approx(1)
    assert common.line_through([1, 2, 3], [1.0, 5.0, 1.0])["r2"] == pytest.approx(0)


def test_the_bare_step_trains():
    recipe = Recipe(batch_size=32)
    parts = training.make_parts(recipe, torch.device("cpu"), lr=0.02)
    images, labels = step.constant_batch(recipe, torch.device("cpu"))
    one = step.bare_step(parts, images, labels, "float32", "eager")
    loss = lambda: parts.criterion(parts.model(images), labels).item()
    before = loss()
    for _ in range(20):
        one()
    assert loss() < before


def test_tables_come_from_the_files_and_say_what_is_missing(measured):
    text = render.render_benchmarks(measured, measured / "gpu")
    result = stored(measured / "baseline.json")
    assert f"{result['summary']['ratio']['median']:.2f}" in text
    assert "Not yet measured" in text and "`make bench-gpu`" in text
    assert "(`make bench`)" not in text
    missing = render.render_benchmarks(measured / "none", measured / "gpu")
    assert "Not yet measured: input, step, baseline, scaling (`make bench`)." in missing
    assert "|" not in missing


def test_every_section_of_the_gpu_command_runs_on_a_cpu_at_toy_size(tmp_path, in_process):
    toy = {
        "accuracy": [*TOY[2:]],
        "speedrun": [*TOY[2:]],
        "speedrun_epochs": [*TOY[2:], "--val", "200"],
        "step": ["--images", "48", "--batch-size", "16", "--rounds", "1", "--product", "16"],
        "input": ["--images", "40", "--batch-size", "8", "--rounds", "1", "--seconds", "0.01",
                  "--workers", "0"],
        "baseline": ["--images", "48", "--batch-size", "16", "--rounds", "2"],
        "scaling": ["--images", "64", "96", "--batch-size", "16", "--epochs", "1", "2",
                    "--rounds", "1"],
    }  # fmt: skip
    chosen = gpu.sections([0], None)
    assert {section.name for section in chosen} == set(toy)
    for section in chosen:
        main = {"accuracy.py": accuracy, "step.py": step, "input.py": input,
                "baseline.py": baseline, "scaling.py": scaling}[section.script].main  # fmt: skip
        options = [*section.options, *toy[section.name], "--data-dir", "digits", *CPU]
        main([*options, "--out", str(tmp_path / f"{section.name}.json")])
        result = stored(tmp_path / f"{section.name}.json")
        assert result["summary"] and not any("failed" in run for run in result["runs"]), (
            section.name
        )


def arguments(tmp_path, seconds=60.0):
    return argparse.Namespace(
        out=tmp_path / "out", data_dir="digits", device="cpu", seconds=seconds, only=None
    )


def script(tmp_path, name, text):
    (tmp_path / name).write_text(
        "import json, sys, time\nout = sys.argv[sys.argv.index('--out') + 1]\n"
        "write = lambda runs: json.dump({'runs': runs, 'summary': {}}, open(out, 'w'))\n" + text
    )
    return str(tmp_path / name)


FASTEST = """
json.dump({"machine": {"device_name": "card"}, "summary": {"fastest_loop": "reduce-overhead"}},
          open(out, "w"))
"""
SAY = "json.dump({'runs': sys.argv[1:], 'summary': {}}, open(out, 'w'))"


@pytest.mark.parametrize(
    ("card", "mode"), [("card", "reduce-overhead"), ("another card", "default")]
)
def test_the_sections_take_the_mode_that_was_fastest_on_this_card(
    tmp_path, monkeypatch, card, mode
):
    monkeypatch.setattr(gpu, "probe_compiler", lambda seconds: "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
    step, other = script(tmp_path, "a.py", FASTEST), script(tmp_path, "b.py", SAY)
    chosen = [gpu.Section("step", step, (), 60, 0), gpu.Section("other", other, (), 60, 0)]
    args = arguments(tmp_path)
    args.device = "cuda"

    def taken():
        words = json.loads((tmp_path / "out" / "other.json").read_text("utf-8"))["runs"]
        return words[words.index("--compile") + 1]

    gpu.run_all(chosen, args)
    assert taken() == mode
    args.only = ["other"]  # in a call of its own too, which keeps what the first one said
    done = gpu.run_all(chosen[1:], args)
    assert taken() == mode == done["compile"]
    assert done["sections"]["step"]["said"] == "done"


def test_a_baseline_that_is_interrupted_ends(tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(baseline, "plain_epoch", interrupt)
    options = ["--images", "48", "--batch-size", "16", *CPU, "--out", str(tmp_path / "b.json")]
    with pytest.raises(KeyboardInterrupt):
        baseline.main(options)
    with pytest.raises(UsageError, match="--rounds is 0"):
        baseline.main([*options, "--rounds", "0"])


def test_a_part_is_done_when_its_own_sections_are(tmp_path, monkeypatch):
    works = gpu.Section("works", script(tmp_path, "d.py", "write([4])"), (), 60, 0)
    other = gpu.Section("other", works.script, (), 60, 0)
    monkeypatch.setattr(gpu, "sections", lambda seeds, references: [works, other])
    (tmp_path / "gpu.json").write_text(json.dumps({"sections": {"step": {"said": "left out"}}}))
    options = ["--data-dir", "digits", "--device", "cpu", "--out", str(tmp_path), "--only", "works"]
    (tmp_path / "other.json").write_text("{}")
    assert set(gpu.main(options)["sections"]) == {"step", "works"}
    assert (tmp_path / "other.json").read_text() == "{}"
    with pytest.raises(UsageError, match="--only typo: the sections are works, other"):
        gpu.main([*options, "typo"])


def test_a_section_that_fails_or_hangs_is_recorded_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "END_S", 2.0)
    tidy = "try: time.sleep(600)\nfinally: write([2])"  # as one that has started a reference
    deaf = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); write([5]); time.sleep(600)"
    )
    chosen = [
        gpu.Section(
            "fails", script(tmp_path, "a.py", "write([1]); raise OSError('no')"), (), 60, 0
        ),
        gpu.Section("hangs", script(tmp_path, "b.py", tidy), (), 3, 0),
        gpu.Section("deaf", script(tmp_path, "e.py", deaf), (), 3, 0),
        gpu.Section("long", script(tmp_path, "c.py", "write([3])"), (), 60, 1000),
        gpu.Section("works", script(tmp_path, "d.py", "write([4])"), (), 60, 0),
    ]
    done = gpu.run_all(chosen, arguments(tmp_path))
    said = {name: row["said"] for name, row in done["sections"].items()}
    assert "OSError: no" in said["fails"] and "its time" in said["hangs"]
    assert "its time" in said["deaf"] and "left out" in said["long"] and said["works"] == "done"
    results = {
        name: json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8"))
        for name in ("fails", "hangs", "works")
    }
    assert results["fails"]["runs"] == [1] and "OSError" in results["fails"]["broken_off"]
    assert results["hangs"]["runs"] == [2] and results["works"] == {"runs": [4], "summary": {}}
    assert json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8")) == done


def test_the_images_may_be_an_archive(tmp_path):
    inside = tmp_path / "cifar"
    (inside / "train" / "cat").mkdir(parents=True)
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(inside, "cifar")
    found = gpu.find_images(str(tmp_path / "images.tar.gz"), tmp_path / "scratch")
    assert (found / "train" / "cat").is_dir()
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        gpu.find_images(str(tmp_path / "nothing.tar"), tmp_path)
    with pytest.raises(UsageError, match="DATA"):
        gpu.find_images(None, tmp_path)


def test_references_run_beside_ours_and_are_scored_by_one_evaluator(
    tmp_path, in_process, monkeypatch
):
    monkeypatch.setitem(PRESETS, "assignment", Recipe(epochs=1, batch_size=450, lr_max=0.01))
    for name, text in {
        "good": f"""exec {shlex.quote(sys.executable)} -c '
import json, os, numpy as np
labels = np.load(os.environ["IMAGES"])["test_labels"]
np.save(os.environ["OUT"] + "/probabilities.npy", np.eye(10)[labels])
print("noise"); print(json.dumps({{"accuracy": 0.1, "training_seconds": 3}}))'""",
        "bad": "echo broken >&2; exit 3",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.sh").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name / "run.sh").chmod(0o755)
    file = tmp_path / "references.json"
    references.main(
        ["--references", str(tmp_path), "--data-dir", "digits", "--seeds", "0", *CPU,
         "--preset", "assignment", "--epochs", "1", "2", "--out", str(file)]
    )  # fmt: skip
    by_name = {run["name"]: run for run in stored(file)["runs"]}
    ours = [f"{references.OURS}, {epochs} epochs" for epochs in (1, 2)]
    assert list(by_name) == [*ours, "bad", "good"]
    assert by_name["good"]["accuracy"] == 1.0 and by_name["good"]["accuracy_reported"] == 0.1
    assert all(by_name[name]["training_seconds"] > 0 for name in ours)
    assert by_name["bad"]["failed"] == "ended with 3: broken"


@pytest.mark.parametrize(
    ("accuracy", "views", "told"),
    [
        (0.92, 1, "1.67"),  # half the way from 4 s to 8 s: the drop at 5 s does not count
        (0.94, 1, "1.25"),  # as good as the most epochs
        (0.85, 1, "3.33 or more"),  # ours is better with the fewest epochs already
        (0.95, 1, "not reached"),
        (0.95, 2, "1.25"),  # by two views
    ],
)
def test_a_reference_is_compared_at_its_own_accuracy(accuracy, views, told):
    ours = [
        {"name": f"{references.OURS}, {epochs} epochs", "accuracy": reached,
         "accuracy_mirrored": reached + 0.01, "training_seconds": float(epochs)}
        for epochs, reached in ((8, 0.94), (3, 0.93), (4, 0.90))
    ]  # fmt: skip
    reference = {"name": "it", "accuracy": accuracy, "views": views, "training_seconds": 10.0}
    summary = references.summarise([*ours, reference])
    assert summary["it"]["against_ours"]["said"] == told
    assert "against_ours" not in summary[ours[0]["name"]]


def test_the_batched_path_needs_none_of_what_a_gpu_machine_may_lack():
    script = """
import sys
lacking = ["albumentations", "cv2", "torch_lr_finder", "torchsummary", "sklearn", "matplotlib"]
sys.modules.update(dict.fromkeys(lacking))
import torch
from benchmarks import accuracy, baseline, gpu, input, references, scaling, step
from benchmarks.training import Recipe, random_images, test_loader, train_loader
images, recipe = random_images(8), Recipe(batch_size=4)
device = torch.device("cpu")
for loader in (train_loader(images, recipe, device), test_loader(images, images, device)):
    assert next(iter(loader))[0].shape[1:] == (3, 32, 32)
assert any("--set" in section.options for section in gpu.sections([0], None))
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=gpu.ROOT)
