import dataclasses
import itertools
import json

import pytest

from benchmarks import accuracy, campaign, effects
from benchmarks.effects import DECAY
from benchmarks.render import GPU
from onecycle.errors import UsageError
from onecycle.recipe import Recipe, with_later_fields
from onecycle.run_parts import USUAL_RATIO


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
    recipes, _ = recipes_of(campaign.factorial())
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


def test_the_factorial_has_all_combinations_and_its_seeds_are_mixed_with_no_factor():
    recipes, seeds = recipes_of(campaign.factorial())
    assert effects.factors_of(recipes) == {
        name: list(pair) for name, pair in campaign.LEVELS.items()
    }
    assert len(recipes) == 16
    for name, pair in campaign.LEVELS.items():
        rows = [effects.levels_of(recipe, recipes) for recipe in recipes.values()]
        with_seed_1 = [row[name] for row, own in zip(rows, seeds.values()) if own == [1]]
        assert with_seed_1.count(pair[0]) == with_seed_1.count(pair[1]) == 4


def found(**factors):
    rows = {}
    for name, (low, high) in campaign.LEVELS.items():
        rows[name] = {"low": low, "high": high, "effect": factors.get(name.split()[0], 0.0),
                      "standard_error": 0.001}  # fmt: skip
    return rows


def test_the_halving_changes_what_is_above_the_noise():
    assert campaign.halving(found()) == {"present": campaign.PRESENT}
    made = campaign.halving(found(lr_max=0.003, decay=-0.0015, label_smoothing=0.0005))
    assert list(made) == ["present", "effects above 1 error", "effects above 2 errors"]
    assert made["effects above 1 error"] == {
        "lr_max": 0.0032, "weight_decay": 0.28125, "label_smoothing": 0.1, "padding": "constant"
    }  # fmt: skip
    assert made["effects above 2 errors"] == campaign.PRESENT | {"lr_max": 0.0032}
    # The better level is the present one, and one recipe has two names: it is run once.
    same = campaign.halving(found(padding=-0.01, label_smoothing=0.01))
    assert list(same) == ["present", "effects above 1 error"]


@pytest.mark.parametrize(
    ("means", "name"),
    [
        ((0.9100, 0.9150, 0.9140), "two"),  # alike: one change is fewer than two
        ((0.9100, 0.9160, 0.9140), "one"),
        ((0.9145, 0.9150, 0.9160), "present"),  # 0.15 points are alike
        ((None, 0.9150, 0.9100), "one"),
    ],
)
def test_the_winner_is_the_best_or_one_as_good_with_fewer_changes(tmp_path, means, name):
    recipes = {
        "present": campaign.PRESENT,
        "one": campaign.PRESENT | {"lr_max": 0.0032, "padding": "reflect"},
        "two": campaign.PRESENT | {"lr_max": 0.0032},
    }
    summary = {
        each: {"failed": 0} | ({} if mean is None else {"accuracy": {"mean": mean}})
        for each, mean in zip(recipes, means)
    }
    stored = {each: dataclasses.asdict(Recipe(**fields)) for each, fields in recipes.items()}
    result = {"summary": summary, "recipes": stored}
    assert campaign.winner(result) == recipes[name]
    (tmp_path / "halving.json").write_text(json.dumps(result))
    made, _ = recipes_of(campaign.chosen_options(tmp_path))
    assert {field: made["chosen"][field] for field in campaign.PRESENT} == recipes[name]


def test_what_a_choice_has_nothing_to_go_on_with_is_said(tmp_path):
    with pytest.raises(UsageError, match="factorial.json has no effects to go on with"):
        campaign.halving_options(tmp_path)
    (tmp_path / "halving.json").write_text(json.dumps({"summary": {"a": {"failed": 3}}}))
    with pytest.raises(UsageError, match="no finished run"):
        campaign.chosen_options(tmp_path)


def without_range_test(recipes):
    """What decides a training whose LRMAX is given; its range test has other defaults now."""
    kept = {name: with_later_fields(recipe) for name, recipe in recipes.items()}
    for name, recipe in kept.items():
        assert recipe["lr_max"] is not None
        recipe["lr_ratio"] = recipe["lr_ratio"] or USUAL_RATIO
        kept[name] = {
            field: value
            for field, value in recipe.items()
            if not field.startswith("finder_") and field != "lr_fallback"
        }
    return kept


def test_the_published_campaign_chose_by_these_rules():
    files = {
        name: json.loads((GPU / f"{name}.json").read_text("utf-8"))
        for name in ("factorial", "halving", "chosen")
    }
    factorial = files["factorial"]
    found = effects.effects_of(factorial["recipes"], factorial["runs"])
    for name, row in factorial["effects"].items():
        assert found[name]["effect"] == pytest.approx(row["effect"])
        assert found[name]["standard_error"] == pytest.approx(row["standard_error"])
    recipes, _ = recipes_of(campaign.halving_options(GPU))
    assert without_range_test(recipes) == without_range_test(files["halving"]["recipes"])
    recipes, _ = recipes_of(campaign.chosen_options(GPU))
    assert without_range_test(recipes) == without_range_test(files["chosen"]["recipes"])
