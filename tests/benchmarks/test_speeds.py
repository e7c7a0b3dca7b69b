import numpy as np
import pytest
import torch
from small_benchmarks import CPU, Tiny, stored

from benchmarks import baseline, common, render, scaling, step, training
from benchmarks.elsewhere import speed_plain
from onecycle.checks import PROBED
from onecycle.errors import UsageError
from onecycle.recipe import Recipe
from onecycle.training import compute as compute_module
from onecycle.training import fused
from onecycle.training.compute import Compute


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
    rates = [run["images_per_s"] for run in result["runs"][1:]]
    ratios = [row[baseline.OURS] / row[baseline.PLAIN] for row in rates]
    row = result["summary"]["loops"][baseline.PLAIN]
    assert row["ours_over_it"]["median"] == pytest.approx(np.median(ratios))
    told = result["failed"].keys() | result["summary"]["loops"].keys()
    on_cpu = {name for name, loop in baseline.LOOPS.items() if "cpu" in loop.devices}
    assert {baseline.OURS, *on_cpu} <= told
    assert "AMX" in result["summary"]["goal"]

    result = stored(measured / "scaling.json")
    assert result["failed"] == {}
    assert [run["axis"] for run in result["runs"]] == sorted(
        ["images", "batch_size", "epochs"] * 2, key=scaling.AXES.index
    )


def test_a_baseline_that_is_interrupted_ends(tmp_path, monkeypatch):
    def interrupt(pipe):
        raise KeyboardInterrupt

    monkeypatch.setattr(baseline, "turn_of", interrupt)
    options = ["--images", "48", "--batch-size", "16", *CPU, "--out", str(tmp_path / "b.json")]
    with pytest.raises(KeyboardInterrupt):
        baseline.main(options)
    with pytest.raises(UsageError, match="--rounds is 0"):
        baseline.main([*options, "--rounds", "0"])


def test_a_loop_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    def fail(task):
        task.begin()
        raise RuntimeError("no memory\nmore")

    monkeypatch.setattr(speed_plain, "train", fail)
    out = tmp_path / "b.json"
    baseline.main(
        ["--images", "48", "--batch-size", "16", "--rounds", "1", *CPU, "--out", str(out)]
    )
    result = stored(out)
    assert result["failed"][baseline.PLAIN] == "RuntimeError: no memory"
    assert list(result["summary"]["loops"]) == [baseline.OURS]
    assert "RuntimeError: no memory" in render.TABLES["baseline"](result)


def test_the_warm_up_meets_the_two_batch_shapes_of_an_epoch(monkeypatch):
    shapes = []
    forward = Tiny.forward
    monkeypatch.setattr(Tiny, "forward", lambda self, x: shapes.append(len(x)) or forward(self, x))
    images = training.random_images(3 * 16 + 5)
    training.warm_up(Recipe(batch_size=16), (images, images), Compute(torch.device("cpu")))
    assert set(shapes) - {PROBED} == {16, 5}


def test_the_line_of_least_squares():
    line = common.line_through([1, 2, 4], [3.0, 5.0, 9.0])
    assert (line["slope"], line["intercept"]) == pytest.approx((2, 1))
    assert line["r2"] == pytest.approx(1)
    assert common.line_through([1, 2, 3], [1.0, 5.0, 1.0])["r2"] == pytest.approx(0)


@pytest.mark.parametrize("mode", ["eager", "fused"])
def test_the_bare_step_trains(mode, monkeypatch):
    modes = {"off": None}
    monkeypatch.setattr(
        compute_module, "get_compile_mode", lambda device, name: modes.get(name, name)
    )
    monkeypatch.setattr(fused, "_runs_on", lambda device: False)  # it would take a while
    images = training.random_images(64)
    compute = step.in_mode(Compute(torch.device("cpu")), mode)
    recipe = Recipe(batch_size=32, finder_start_lr=0.02)
    run = training.make_run(recipe, (images, images), compute)
    assert ("forward" in vars(run.model)) == (mode == "fused")
    images, labels = step.constant_batch(run)
    one = step.bare_step(run, images, labels, mode)
    loss = lambda: run.criterion(run.model(images), labels).item()
    before = loss()
    for _ in range(20):
        one()
    assert loss() < before


def test_tables_come_from_the_files_and_say_what_is_missing(measured):
    text = render.render_benchmarks(measured, measured / "gpu")
    result = stored(measured / "baseline.json")
    ours_over_it = result["summary"]["loops"][baseline.PLAIN]["ours_over_it"]
    assert f"{ours_over_it['median']:.2f}" in text
    assert "Not yet measured" in text and "`make bench-gpu`" in text
    assert "(`make bench`)" not in text
    missing = render.render_benchmarks(measured / "none", measured / "gpu")
    assert "Not yet measured: input, step, baseline, scaling (`make bench`)." in missing
    assert "|" not in missing
