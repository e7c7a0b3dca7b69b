"""Main effects of two-level factors: what each does to the accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DECAY = "decay per step"
"""LRMAX * weight_decay: the share of a weight that a step at the peak takes."""

Signs = Mapping[str, Mapping[str, int]]
"""By recipe and factor: -1 for the lower level, 1 for the upper one."""


def factors_of(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The two levels of each factor, the lower one first; empty if this is no full factorial.

    That of a single factor is none: its summary says as much.
    """
    levels = {name: levels_of(recipe, recipes) for name, recipe in recipes.items()}
    found: dict[str, set[Any]] = {}
    for row in levels.values():
        for factor, level in row.items():
            found.setdefault(factor, set()).add(level)
    factors = {name: values for name, values in found.items() if len(values) > 1}
    combined = {tuple(row.get(name) for name in factors) for row in levels.values()}
    is_full = len(combined) == len(recipes) == 2 ** len(factors)
    if len(factors) < 2 or not is_full or any(len(values) != 2 for values in factors.values()):
        return {}
    by_value = lambda level: (level is not None, level)  # none is the lower one
    return {name: sorted(values, key=by_value) for name, values in factors.items()}


def levels_of(recipe: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]) -> dict:
    """A recipe's fields but for the seed; its decay per step, if the decay goes with the rate."""
    row = {name: value for name, value in recipe.items() if name != "seed"}
    decays = {other["weight_decay"] for other in recipes.values()}
    if len(decays) > 2 and None not in {other["lr_max"] for other in recipes.values()}:
        row[DECAY] = float(f"{row['lr_max'] * row.pop('weight_decay'):.6g}")
    return row


def effects_of(
    recipes: Mapping[str, Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The effects of a full factorial, whose factors are the fields that differ.

    Empty if the recipes are none or too few of the runs are there.
    """
    factors = factors_of(recipes)
    signs = {}
    for variant, recipe in recipes.items():
        row = levels_of(recipe, recipes)
        signs[variant] = {name: 2 * pair.index(row[name]) - 1 for name, pair in factors.items()}
    return main_effects(signs, factors, runs)


def main_effects(
    signs: Signs, levels: Mapping[str, Sequence[Any]], runs: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """By factor the mean accuracy at its upper level minus that at its lower one.

    The main-effects model is fitted by least squares, which gives the difference of the means if
    no run is missing; standard errors are those of its residuals. Where recipes have several seeds
    the model has a number for each seed too, so what all runs of a seed share is no error. Empty if
    too few of the runs are there.

    Args:
        signs: of each recipe.
        levels: by factor the lower and the upper one.
        runs: of a results file.
    """
    done = [run for run in runs if "accuracy" in run and run["variant"] in signs]
    variants = [run["variant"] for run in done]
    seeds = sorted({run["seed"] for run in done}) if len(set(variants)) < len(done) else []
    columns = [
        [
            1,
            *(signs[run["variant"]][name] for name in levels),
            *(run["seed"] == s for s in seeds[1:]),
        ]
        for run in done
    ]
    x, y = np.array(columns, float), np.array([run["accuracy"] for run in done])
    freedom = len(done) - len(levels) - 1 - len(seeds[1:])
    if not levels or freedom < 1 or np.linalg.matrix_rank(x) < x.shape[1]:
        return {}
    inverse = np.linalg.inv(x.T @ x)
    fitted = inverse @ x.T @ y
    errors = np.sqrt(inverse.diagonal() * ((y - x @ fitted) ** 2).sum() / freedom)
    return {
        name: {
            "low": low,
            "high": high,
            "effect": float(2 * fitted[column]),
            "standard_error": float(2 * errors[column]),
        }
        for column, (name, (low, high)) in enumerate(levels.items(), 1)
    }
