import dataclasses
import itertools
import json

import pytest

from benchmarks import accuracy, campaign, effects
from benchmarks.design import read_design
from benchmarks.effects import DECAY
from benchmarks.render import GPU
from onecycle.errors import UsageError
from onecycle.recipe import PRESETS


def recipes_of(options):
    made, seeds = accuracy.recipes_of(accuracy.parse(options))
    return {name: dataclasses.asdict(recipe) for name, recipe in made.items()}, seeds


def test_effects_of_numbers_with_a_known_answer():
    recipes, _ = recipes_of([
        "--variant", "a: lr_max=0.1 padding=constant", "--variant", "b: lr_max=0.2 padding=constant",
        "--variant", "c: lr_max=0.1 padding=reflect", "--variant", "d: lr_max=0.2 padding=reflect",
    ])  # fmt: skip
    # 0.5 +- 0.02 by the rate -+ 0.03 by the padding, and an interaction of +-0.01 as the residuals.
    values = {"a": 0.46, "b": 0.48, "c": 0.50, "d": 0.56}
    runs = [{"variant": name, "accuracy": value} for name, value in values.items()]
    found = effects.effects_of(recipes, runs)
    assert (found["lr_max"]["low"], found["lr_max"]["high"]) == (0.1, 0.2)
    assert (found["padding"]["low"], found["padding"]["high"]) == ("constant", "reflect")
    assert found["lr_max"]["effect"] == pytest.approx(0.04)
    assert found["padding"]["effect"] == pytest.approx(0.06)
    # Four residuals of 0.01, one degree of freedom: the deviation of a run is 0.02, that of the
    # difference of two means of two runs the same.
    assert found["padding"]["standard_error"] == pytest.approx(0.02)


def test_effects_without_the_runs_that_failed_are_those_of_the_model():
    recipes = json.loads((GPU / "factorial.json").read_text("utf-8"))["recipes"]
    truth = {"lr_max": -0.004, DECAY: 0.006, "label_smoothing": 0.001, "padding": 0.002}
    factors = effects.factors_of(recipes)
    runs = []
    for name, recipe in recipes.items():
        row = effects.levels_of(recipe, recipes)
        value = 0.9 + sum(
            (factors[factor].index(row[factor]) - 0.5) * effect for factor, effect in truth.items()
        )
        runs.append({"variant": name, "accuracy": value})
    for some in (runs, [*runs[1:9], {"variant": runs[9]["variant"], "failed": "nan"}, *runs[10:]]):
        found = effects.effects_of(recipes, some)
        assert {name: row["effect"] for name, row in found.items()} == pytest.approx(truth)
    assert effects.effects_of(recipes, runs[:5]) == {}  # no more runs than numbers to find


@pytest.mark.parametrize(
    "variants",
    [
        ["a", "b: weight_decay=0"],  # a single factor
        ["a: lr_max=1", "b: lr_max=2", "c: lr_max=1 epochs=9"],  # a combination is missing
        ["a: lr_max=1", "b: lr_max=2", "c: lr_max=3", "d: lr_max=1 epochs=9"],
        ["a", "b: weight_decay=0.2", "c: weight_decay=0.1 lr_max=0.01"],  # a rate to be found
    ],
)
def test_other_variants_are_no_factorial(variants):
    recipes, _ = recipes_of([word for text in variants for word in ("--variant", text)])
    assert effects.factors_of(recipes) == {}


def test_none_is_a_level_too():
    words = []
    for rate, padding in itertools.product(("none", "0.01"), ("constant", "reflect")):
        words += ["--variant", f"{rate} {padding}: lr_max={rate} padding={padding}"]
    recipes, _ = recipes_of(words)
    found = effects.factors_of(recipes)
    assert found == {"lr_max": [None, 0.01], "padding": ["constant", "reflect"]}


def test_the_published_effects_are_those_of_the_published_runs():
    factorial = json.loads((GPU / "factorial.json").read_text("utf-8"))
    found = effects.effects_of(factorial["recipes"], factorial["runs"])
    assert len(found) == 4
    for name, row in factorial["effects"].items():
        assert found[name]["effect"] == pytest.approx(row["effect"])
        assert found[name]["standard_error"] == pytest.approx(row["standard_error"])


def found(**factors):
    names = read_design(campaign.DESIGN).levels
    assert factors.keys() <= names.keys()
    return {name: {"effect": factors.get(name, 0.0), "standard_error": 0.001} for name in names}


def halving(**factors):
    return campaign.halving(read_design(campaign.DESIGN), found(**factors))


def test_the_halving_changes_what_is_above_the_noise():
    present = halving()["present"]
    assert list(halving()) == ["present"]
    assert (present["lr_max"], present["start"], present["padding"]) == (
        0.0032,
        "default",
        "reflect",
    )
    made = halving(rate=0.003, vectors=0.0015, decay=-0.004, head=0.0005)
    assert list(made) == ["present", "effects above 1 error", "effects above 2 errors"]
    assert made["effects above 2 errors"] == present | {"lr_max": 0.0048}
    vectors = {"lr_max": 0.0048, "vector_rate": 0.25, "vector_decay": True}
    assert made["effects above 1 error"] == present | vectors
    # One recipe has two names: it is run once.
    assert list(halving(rate=0.01)) == ["present", "effects above 1 error"]
    # What the assignment does not have is not chosen for it.
    assert list(halving(sharpness=0.01)) == ["present"]


@pytest.mark.parametrize(
    ("means", "changed"),
    [
        ((0.9100, 0.9150, 0.9140), {"lr_max"}),  # alike: one change is fewer than two
        ((0.9100, 0.9160, 0.9140), {"lr_max", "start"}),
        ((0.9145, 0.9150, 0.9160), set()),  # 0.15 points are alike
        ((None, 0.9150, 0.9100), {"lr_max", "start"}),
    ],
)
def test_the_winner_is_the_best_or_one_as_good_with_fewer_changes(tmp_path, means, changed):
    rows = found(rate=0.003, start=0.0015)
    names = campaign.HALVING
    summary = {
        name: {"failed": 0} | ({} if mean is None else {"accuracy": {"mean": mean}})
        for name, mean in zip(names, means)
    }
    (tmp_path / "screening.json").write_text(json.dumps({"effects": rows}))
    (tmp_path / "halving.json").write_text(json.dumps({"summary": summary}))
    made, _ = recipes_of(campaign.chosen_options(tmp_path))
    present = halving()["present"]
    base = dataclasses.asdict(dataclasses.replace(PRESETS["assignment"], **present))
    chosen = made["chosen"]
    assert {name for name, value in chosen.items() if base[name] != value} == changed


def test_what_a_choice_has_nothing_to_go_on_with_is_said(tmp_path):
    with pytest.raises(UsageError, match="screening.json has no effects to go on with"):
        campaign.halving_options(tmp_path)
    (tmp_path / "screening.json").write_text(json.dumps({"effects": found()}))
    (tmp_path / "halving.json").write_text(json.dumps({"summary": {"a": {"failed": 3}}}))
    with pytest.raises(UsageError, match="no finished run"):
        campaign.chosen_options(tmp_path)
