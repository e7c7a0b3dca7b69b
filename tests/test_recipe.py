import dataclasses
import json
import math
from pathlib import Path

import pytest

from onecycle.errors import UsageError
from onecycle.recipe import (
    PRESETS,
    TYPES,
    Recipe,
    as_data,
    describe,
    may_be,
    read_recipe,
    with_later_fields,
)
from onecycle.run_parts import finder_plan

ROOT = Path(__file__).resolve().parent.parent
NUMERIC = {name for name, (kind, _) in TYPES.items() if kind in (int, float)}
NUMBERS = [f.name for f in dataclasses.fields(Recipe) if f.name in NUMERIC]


def test_the_assignments_numbers():
    recipe = PRESETS["assignment"]
    assert (recipe.epochs, recipe.peak, recipe.batch_size) == (24, 5, 512)
    assert (recipe.lr_max, recipe.lr_min, recipe.lr_ratio) == (None, None, None)  # all found
    assert recipe.flip_probability == 0.5


@pytest.mark.parametrize("epochs", [1, 10, 12, 48])
def test_the_peak_stays_at_five_of_twenty_four(epochs):
    assert dataclasses.replace(Recipe(), epochs=epochs).peak == pytest.approx(epochs * 5 / 24)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3


def test_digits_are_not_mirrored_and_stay_small():
    recipe = PRESETS["digits"]
    assert recipe.flip_probability == 0
    sweeps, steps = finder_plan(recipe, 1437)
    passes = recipe.epochs * (1437 + 360) + sweeps * steps * recipe.batch_size + 360
    assert passes <= 20_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("epochs", -1), ("peak_epoch", 0), ("peak_epoch", math.nan),
        ("batch_size", 1), ("batch_size", -512), ("lr_max", 0), ("lr_max", -0.1), ("lr_max", math.nan),
        ("lr_max", math.inf), ("lr_min", 0), ("lr_min", math.nan), ("lr_ratio", 1),
        ("finder_start_lr", 0), ("finder_start_lr", 101), ("finder_end_lr", math.inf),
        ("finder_steps", 19), ("finder_sweeps", 0), ("weight_decay", -1), ("weight_decay", math.nan), ("beta1", 1),
        ("beta2", -0.1), ("beta1_at_peak", 0.91), ("label_smoothing", 1), ("flip_probability", 1.1),
        ("seed", -1), ("seed", 2**32), ("cutout_size_px", -1), ("image_size", 7), ("body_rate", 1.1),
        ("head_rate", 0), ("vector_rate", -1), ("bn_groups", 0), ("decay_per_step", 0), ("mixup", -0.1), ("cutmix", 101), ("average_steps", -1), ("average_steps", 2_000_000),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_by_name_value_and_range(field, value):
    with pytest.raises(
        UsageError,
        match=rf"^{field} is {value}; it must be (from .* to|above) [\w.]+( and below )?",
    ):
        Recipe(**{field: value})


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", ["12", [1, 2], True, 1j, {"a": "\n"}], ids=str)
def test_what_is_no_number_is_refused(field, value):
    with pytest.raises(UsageError, match=rf"^{field} is .*; it must be a (whole )?number$"):
        Recipe(**{field: value})


@pytest.mark.parametrize("value", [0, 1, "yes", None, math.nan])
def test_a_switch_is_true_or_false(value):
    with pytest.raises(UsageError, match="^alternating_flip is .*; it must be True or False$"):
        Recipe(alternating_flip=value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"epochs": 6, "peak_epoch": 6}, "peak_epoch is 6; it must be above 0 and below epochs (6)"),
        ({"lr_max": 0.1, "lr_min": 0.2}, "lr_min is 0.2; it must be above 0 and below lr_max (0.1)"),
        ({"finder_start_lr": 0.1, "finder_end_lr": 0.1},
         "finder_start_lr is 0.1; it must be above 0 and below finder_end_lr (0.1)"),
        ({"beta1": 0.8, "beta1_at_peak": 0.9},
         "beta1_at_peak is 0.9; it must be from 0 to beta1 (0.8)"),
        ({"keep": "average"},
         "keep is average; average_steps must be 1 or more then, such as an epoch's steps"),
    ],
)  # fmt: skip
def test_a_field_that_another_bounds_names_it(fields, said):
    with pytest.raises(UsageError) as error:
        Recipe(**fields)
    assert str(error.value) == said


def test_every_field_says_what_it_means_and_may_be():
    for field in dataclasses.fields(Recipe):
        assert f"{field.name}: {describe(field)}." in Recipe.__doc__
        assert ("(" in field.metadata["about"]) >= (field.default is None)
    assert describe(dataclasses.fields(Recipe)[0]) == (
        "passes over the training images (24, more for few images); from 1 to 100000"
    )


@pytest.mark.parametrize("value", [None, 3, ["adam"]])
def test_what_is_no_word_is_no_choice(value):
    with pytest.raises(UsageError, match="^optimizer is .*; it must be adam or muon$"):
        Recipe(optimizer=value)


@pytest.mark.parametrize("field", ["padding", "resize", "optimizer"])
def test_a_word_that_is_no_choice_is_refused_with_the_choices(field):
    with pytest.raises(UsageError, match=rf"^{field} is 'sgd'; it must be \w+ or \w+$"):
        Recipe(**{field: "sgd"})


def test_the_speedrun_has_its_rates_and_no_range_test():
    recipe = PRESETS["speedrun"]
    assert recipe.lr_max is not None
    assert recipe.lr_max / recipe.lr_ratio < 1e-3 * recipe.lr_max * 1.01
    assert recipe.batch_size == PRESETS["assignment"].batch_size


def test_a_decay_that_would_do_nothing_is_refused():
    with pytest.raises(UsageError, match="weight_decay is 0.1; it must be 0"):
        dataclasses.replace(PRESETS["speedrun"], weight_decay=0.1)


@pytest.mark.parametrize(
    "field", ["epochs", "batch_size", "finder_steps", "seed", "cutout_size_px"]
)
def test_counts_are_whole_numbers(field):
    with pytest.raises(UsageError, match=f"{field} is 30.5; it must be a whole number"):
        Recipe(**{field: 30.5})


def test_lrmin_is_below_lrmax():
    with pytest.raises(UsageError, match="lr_min is 0.01"):
        Recipe(lr_max=0.01, lr_min=0.01)
    Recipe(lr_max=0.01, lr_min=0.001)


def test_plain_data_has_the_peak_that_follows():
    assert as_data(Recipe(epochs=48))["peak_epoch"] == 10
    assert as_data(Recipe(peak_epoch=3))["peak_epoch"] == 3
    assert with_later_fields({"epochs": 3}) == dataclasses.asdict(Recipe(epochs=3))
    stored = as_data(Recipe())
    del stored["padding"]  # of a run before there was the field
    assert with_later_fields(stored)["padding"] == "constant"


@pytest.mark.parametrize("recipe", [*PRESETS.values(), Recipe(epochs=7, peak_epoch=3.5)])
def test_a_recipe_comes_back_from_the_results_of_a_run(tmp_path, recipe):
    (tmp_path / "results.json").write_text(json.dumps({"recipe": as_data(recipe), "data": {}}))
    assert read_recipe(tmp_path / "results.json") == recipe


def test_a_published_recipe_can_be_read():
    swept = {"finder_start_lr": 1e-5, "finder_end_lr": 0.1, "finder_steps": 100}
    then = {"lr_ratio": 200, "weight_decay": 0.4, "padding": "constant"}
    published = dataclasses.replace(PRESETS["assignment"], **then, **swept)
    assert read_recipe(ROOT / "results" / "cifar10" / "results.json") == published


def test_fields_that_are_newer_than_a_run_have_their_defaults(tmp_path):
    stored = as_data(PRESETS["digits"])
    del stored["beta1_at_peak"], stored["batch_size"]
    (tmp_path / "results.json").write_text(json.dumps({"recipe": stored}))
    recipe = read_recipe(tmp_path / "results.json", PRESETS["digits"])
    assert recipe == dataclasses.replace(PRESETS["digits"], batch_size=None)


def test_what_is_chosen_later_may_be_anything_and_what_is_given_may_not():
    stored = as_data(Recipe(epochs=40, batch_size=16, lr_max=0.1))
    assert may_be(stored, Recipe(lr_max=0.1)) and may_be(stored, Recipe(lr_max=0.1, epochs=40))
    assert not may_be(stored, Recipe()) and not may_be(stored, Recipe(lr_max=0.1, epochs=41))


@pytest.mark.parametrize(
    ("name", "text"),
    [("r.toml", "epochs = 12\nlr_max = 1"), ("r.json", '{"epochs": 12, "lr_max": 1}'),
     ("r.TOML", "[recipe]\nepochs = 12\nlr_max = 1"), ("recipe", '{"epochs": 12, "lr_max": 1}')],
)  # fmt: skip
def test_a_file_may_name_some_fields(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_recipe(tmp_path / name) == Recipe(epochs=12, lr_max=1)


def test_fields_that_a_file_does_not_name_are_those_of_the_base(tmp_path):
    (tmp_path / "r.toml").write_text("epochs = 4")
    digits = PRESETS["digits"]
    assert read_recipe(tmp_path / "r.toml", digits) == dataclasses.replace(digits, epochs=4)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.toml", b"epoch = 3", "'epoch' is no field of a recipe, which has epochs, peak_epoch,"),
        ("r.toml", b"epochs = '3'", "epochs is '3'; it must be a whole number"),
        ("r.toml", b"epochs = 2000000", "epochs is 2000000; it must be from 1 to 100000"),
        ("r.toml", b"epochs = 3\npeak_epoch = 5", "peak_epoch is 5; it must be above 0 and below epochs"),
        ("r.toml", b"epochs = 3\nepochs = 4", "is not TOML: "),
        ("r.json", b"epochs = 3", "is not JSON (a TOML file ends in .toml): "),
        ("r.json", b"\xff\xfe", "is not JSON"),
        ("r.json", b"[" * 100_000, "is not JSON"),
        ("r.json", b"[24]", 'must have fields, such as {"epochs": 24}'),
        ("r.json", b'{"recipe": {"seed": null}}', "seed is None; it must be a whole number"),
        ("gone.json", None, "No such file"),
        (".", None, "Is a directory"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_named_with_the_field_and_what_is_allowed(
    tmp_path, name, content, said
):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_recipe(file)
    assert str(file) in str(error.value) and said in str(error.value)
    assert "\n" not in str(error.value)
