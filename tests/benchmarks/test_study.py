"""Designs, their effects, and the command that runs them."""

import itertools

import pytest
import torch
from small_benchmarks import CPU, stored

from benchmarks import study, training
from benchmarks.design import make_design, read_design
from benchmarks.effects import main_effects
from benchmarks.render import RESULTS, render_accuracy
from models import CustomResNet
from onecycle.errors import UsageError

DESIGNS = RESULTS.parent / "designs"
PAIR = {"low": {"label_smoothing": 0.1}, "high": {"label_smoothing": 0.2}}
TOY = """
preset = "digits"
limit_train = 48
limit_test = 30
width = 4
averages = [2, 5]
seeds = [0, 1]
[recipe]
epochs = 2
batch_size = 16
lr_max = 0.01
[factors.smoothing]
low = { label_smoothing = 0.1 }
high = { label_smoothing = 0.2 }
[factors.vectors]
low = { vector_rate = 1.0 }
high = { vector_rate = 0.25, vector_decay = true }
[factors.padding]
column = "AB"
low = { padding = "constant" }
high = { padding = "reflect" }
"""


@pytest.fixture(autouse=True)
def own_network(monkeypatch):
    monkeypatch.setattr(training, "CustomResNet", CustomResNet)  # as another process has it


def test_columns_are_products_of_the_letters_and_rows_are_named_by_their_signs():
    found = {
        "one": PAIR,
        "two": {"low": {"bn_groups": 1}, "high": {"bn_groups": 8, "clip_norm": 1.0}},
        "both": {"column": "AB", "low": {"padding": "constant"}, "high": {"padding": "reflect"}},
    }
    design = make_design({"factors": found, "recipe": {"epochs": 3}, "seeds": [5, 6]})
    assert design.signs["one- two+ both-"] == {"one": -1, "two": 1, "both": -1}
    assert list(design.recipes) == [
        "one- two- both+", "one- two+ both-", "one+ two- both-", "one+ two+ both+"
    ]  # fmt: skip
    recipe = design.recipes["one- two+ both-"]
    assert (recipe.label_smoothing, recipe.bn_groups, recipe.clip_norm) == (0.1, 8, 1.0)
    assert (recipe.padding, recipe.epochs) == ("constant", 3)
    assert design.seeds["one- two+ both-"] == [5, 6]
    assert design.levels["two"] == (1, "bn_groups=8 clip_norm=1.0")


def test_a_column_may_choose_the_seed():
    found = {name: PAIR for name in ("one", "two")}
    design = make_design({"factors": found, "seeds": [5, 6], "seed_column": "AB"})
    assert list(design.seeds.values()) == [[6], [5], [5], [6]]


@pytest.mark.parametrize("file", sorted(DESIGNS.glob("*.toml")), ids=lambda file: file.stem)
def test_the_designs_tell_their_factors_apart(file):
    design = read_design(file)
    rows = list(design.signs.values())
    for name in design.levels:
        assert sum(row[name] for row in rows) == 0
    for one, two in itertools.combinations(design.levels, 2):
        assert sum(row[one] * row[two] for row in rows) == 0
    assert len(set(map(repr, design.recipes.values()))) == len(design.recipes)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "either rows or factors"),
        ({"rows": {"a": {}}, "factors": {"b": PAIR}}, "either rows or factors"),
        ({"rows": {"a": {}}, "seed": 3}, "seed is unknown"),
        ({"rows": {"a": {"lr_mx": 3}}}, "lr_mx"),
        ({"rows": {"a": {"lr_max": -3}}}, "lr_max is -3"),
        ({"rows": {"a": {}}, "preset": "assignement"}, "assignement"),
        ({"factors": {"b": {"low": {}}}}, "high"),
    ],
)  # fmt: skip
def test_what_is_no_design_is_refused_with_the_file(tmp_path, monkeypatch, found, said):
    file = tmp_path / "design.toml"
    file.write_text("")
    monkeypatch.setattr("benchmarks.design.tomllib.loads", lambda text: found)
    with pytest.raises(UsageError, match=rf"^{file}: .*{said}"):
        read_design(file)


def test_effects_where_recipes_have_several_seeds_are_free_of_what_a_seed_does():
    design = make_design({
        "seeds": [0, 1, 2],
        "factors": {"one": PAIR, "two": {"low": {"bn_groups": 1}, "high": {"bn_groups": 2}}},
    })  # fmt: skip
    runs = [
        {"variant": name, "seed": seed,
         "accuracy": 0.5 + 0.02 * signs["one"] - 0.005 * signs["two"] + 0.1 * seed}
        for name, signs in design.signs.items() for seed in (0, 1, 2)
    ]  # fmt: skip
    found = main_effects(design.signs, design.levels, runs)
    assert [row["effect"] for row in found.values()] == pytest.approx([0.04, -0.01])
    assert [row["standard_error"] for row in found.values()] == pytest.approx([0, 0], abs=1e-9)
    assert main_effects(design.signs, design.levels, runs[:4]) == {}  # too few
    found = main_effects(design.signs, design.levels, [{"variant": "x", "failed": ""}, *runs[1:]])
    assert [row["effect"] for row in found.values()] == pytest.approx([0.04, -0.01])


def test_a_study_has_the_same_numbers_in_turn_and_side_by_side(tmp_path):
    file = tmp_path / "toy.toml"
    file.write_text(TOY)
    results = []
    for jobs in ("1", "2"):
        out = tmp_path / f"{jobs}.json"
        options = ["--data-dir", "digits", "--design", str(file), *CPU, "--jobs", jobs]
        study.main([*options, "--out", str(out), "--most-seconds", "0"])
        assert len(stored(out)["missing"]) == 8
        study.main([*options, "--out", str(out)])
        results.append(stored(out))
    numbers = [
        {
            (run["variant"], run["seed"]): (run["accuracy"], run["accuracy_averaged"])
            for run in result["runs"]
        }
        for result in results
    ]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 8
    assert "missing" not in results[0]
    assert list(results[0]["effects"]) == ["smoothing", "vectors", "padding"]
    assert results[0]["averages"]["5"]["count"] == 8
    said = render_accuracy(results[0])
    assert "| vectors | 1.0 | vector_rate=0.25 vector_decay=True |" in said
    assert "| 5 steps | 8 |" in said


def test_an_average_beside_a_training_is_that_of_the_recipe_and_changes_nothing():
    images = training.load_images("digits", 0)
    images = images[0].sample(48), images[1].sample(30)
    compute = training.Compute("cpu")
    recipe = training.plain_recipe(16, 2)
    plain = training.train_once(recipe, images, compute, width=4)
    beside = training.train_once(recipe, images, compute, width=4, averages=(2, 4))
    own = training.dataclasses.replace(recipe, average_steps=4, keep="average")
    kept = training.train_once(own, images, compute, width=4)
    assert beside["train_loss"] == plain["train_loss"]
    assert beside["accuracy"] == plain["accuracy"]
    assert beside["accuracy_averaged"]["4"] == kept["accuracy"]


def test_a_narrow_network_has_the_same_layers():
    narrow, whole = training.network(16)(10), CustomResNet()
    assert training.network(64) is CustomResNet
    assert [type(layer) for layer in narrow.modules()] == [type(layer) for layer in whole.modules()]
    assert narrow(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert narrow.fc.in_features == 128
