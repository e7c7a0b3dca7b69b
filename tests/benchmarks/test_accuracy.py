import json

import numpy as np
import pytest
import torch
from small_benchmarks import TOY, stored
from torch._dynamo.utils import counters

from benchmarks import accuracy, render, training
from onecycle.errors import DivergedError, UsageError
from onecycle.optim.lr_rule import suggest_lr
from onecycle.recipe import Recipe
from onecycle.training import compute as compute_module
from onecycle.training.compute import Compute


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
    swept = ["finder_sweeps=3", "finder_steps=20", "finder_end_lr=10"]
    found = ["--set", "lr_max=none", *swept]
    accuracy.main([*TOY, *found, "--seeds", "0", "--out", str(file)])
    result = stored(file)
    ((recipe, run),) = zip(result["recipes"].values(), result["runs"])
    lrs = np.geomspace(recipe["finder_start_lr"], recipe["finder_end_lr"], recipe["finder_steps"])
    losses = np.full(20, np.inf)  # beyond the record it has diverged
    losses[: len(run["range_test"])] = run["range_test"]
    assert suggest_lr(lrs, losses).lr_max == pytest.approx(run["lr_max"], rel=1e-3)


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
    make_run = training.make_run
    monkeypatch.setattr(
        training, "make_run", lambda r, i, *a, **k: seen.extend(i) or make_run(r, i, *a, **k)
    )
    file = tmp_path / "a.json"
    accuracy.main([*TOY, "--val", "100", "--seeds", "0", "--out", str(file)])
    assert len(seen) == 2
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
    for option in ("cutout_size_px=0", "alternating_flip=true"):
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


def test_a_variant_with_a_seed_of_its_own_runs_with_it_alone(tmp_path):
    file = tmp_path / "a.json"
    variants = ["--variant", "ours", "--variant", "fixed: seed=7 padding=reflect"]
    accuracy.main([*TOY, *variants, "--seeds", "0", "1", "--out", str(file)])
    result = stored(file)
    runs = [(run["variant"], run["seed"]) for run in result["runs"]]
    assert runs == [("ours", 0), ("ours", 1), ("fixed", 7)]
    assert result["recipes"]["fixed"]["padding"] == "reflect"


def test_each_field_of_a_recipe_is_an_option_that_a_variant_may_replace():
    recipes, seeds = accuracy.recipes_of(accuracy.parse([
        "--weight-decay", "0.1", "--alternating-flip", "--seed", "7", "--lr-max", "0.01",
        "--variant", "a", "--variant", "b: weight_decay=0.2 alternating_flip=false",
    ]))  # fmt: skip
    assert [recipe.weight_decay for recipe in recipes.values()] == [0.1, 0.2]
    assert [recipe.alternating_flip for recipe in recipes.values()] == [True, False]
    assert seeds == {"a": [7], "b": [7]}


def test_no_run_is_begun_for_which_there_is_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy.Campaign, "needs", lambda self, recipe: self.longest and 1000.0)
    file = tmp_path / "a.json"
    arguments = [*TOY, "--seeds", "0", "1", "2", "--out", str(file)]
    accuracy.main([*arguments, "--most-seconds", "500"])
    result = stored(file)
    assert [run["seed"] for run in result["runs"]] == [0]
    assert result["missing"] == [["assignment", 1], ["assignment", 2]]
    assert "For 2 of the runs there was no time." in render.render_accuracy(result)
    accuracy.main(arguments)
    assert len(stored(file)["runs"]) == 3 and "missing" not in stored(file)


def test_what_a_run_needs_has_compiling_in_it_where_its_graph_is_new():
    campaign = accuracy.Campaign((None, None), Compute(torch.device("cpu")), "batched")
    campaign.longest, campaign.longest_compiling = 11.0, 17.0
    campaign.graph = training.graph_of(Recipe(label_smoothing=0.1))
    assert campaign.needs(Recipe(weight_decay=1.0, seed=3)) == 11
    assert campaign.needs(Recipe(label_smoothing=0.2)) == 28


def test_runs_that_share_a_graph_follow_each_other_where_they_are_compiled():
    recipes = {"a": Recipe(), "b": Recipe(label_smoothing=0.2), "c": Recipe(weight_decay=1.0)}
    seeds = dict.fromkeys(recipes, [0, 1])

    def order(mode):
        compute = Compute(torch.device("cpu"), compile_mode=mode)
        runs = accuracy.in_order(recipes, seeds, compute)
        return " ".join(f"{name}{recipe.seed}" for name, recipe in runs)

    assert order(None) == "a0 b0 c0 a1 b1 c1"
    assert order("default") == "a0 c0 a1 c1 b0 b1"


def test_another_training_of_the_same_graph_compiles_nothing(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda m, **_: compile_(m, backend="eager", dynamic=False)
    )
    monkeypatch.setattr(compute_module, "get_compile_mode", lambda device, name: name)
    images = training.load_images("digits", 0)
    images = images[0].sample(32), images[1].sample(20)
    compute = Compute(torch.device("cpu"), compile_mode="default")
    count, made = counters["stats"], []
    for seed, smoothing in ((0, 0.1), (1, 0.1), (2, 0.2)):
        recipe = Recipe(epochs=3, batch_size=32, lr_max=0.01, seed=seed, label_smoothing=smoothing)
        if seed % 2 == 0:
            training.warm_up(recipe, images, compute)
        before = count["unique_graphs"]
        training.train_once(recipe, images, compute)
        made.append(count["unique_graphs"] - before)
    assert made == [0, 0, 0] and count["unique_graphs"] > 0
