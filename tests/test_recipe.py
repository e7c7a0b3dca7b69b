import dataclasses
import math

import pytest

from onecycle.errors import UsageError
from onecycle.recipe import PRESETS, Recipe


def test_the_assignments_numbers():
    recipe = PRESETS["assignment"]
    assert (recipe.epochs, recipe.peak, recipe.batch_size) == (24, 5, 512)
    assert (recipe.finder_end_lr, recipe.finder_steps, recipe.flip_probability) == (0.1, 100, 0.5)


@pytest.mark.parametrize("epochs", [1, 10, 12, 48])
def test_the_peak_stays_at_five_of_twenty_four(epochs):
    assert dataclasses.replace(Recipe(), epochs=epochs).peak == pytest.approx(epochs * 5 / 24)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3


def test_digits_are_not_mirrored_and_stay_small():
    recipe = PRESETS["digits"]
    assert recipe.flip_probability == 0
    passes = recipe.epochs * (1437 + 360) + recipe.finder_steps * recipe.batch_size + 360
    assert passes <= 20_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("epochs", -1), ("peak_epoch", 0), ("peak_epoch", 24), ("peak_epoch", math.nan),
        ("batch_size", 1), ("batch_size", -512), ("lr_max", 0), ("lr_max", -0.1), ("lr_max", math.nan),
        ("lr_max", math.inf), ("lr_min", 0), ("lr_min", math.nan), ("lr_ratio", 1),
        ("finder_start_lr", 0), ("finder_start_lr", 0.2), ("finder_end_lr", math.inf),
        ("finder_steps", 19), ("weight_decay", -1), ("weight_decay", math.nan), ("beta1", 1),
        ("beta2", -0.1), ("beta1_at_peak", 0.91), ("label_smoothing", 1), ("flip_probability", 1.1),
        ("seed", -1), ("seed", 2**32), ("cutout_size_px", -1), ("cutout_size_px", 33),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_by_name_value_and_range(field, value):
    with pytest.raises(
        UsageError, match=rf"^{field} is {value}; it must be (from|above|below) "
    ):
        Recipe(**{field: value})


@pytest.mark.parametrize("field", ["padding", "optimizer"])
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
