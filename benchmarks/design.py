"""Designed experiments: a file of factors or rows, and the recipes and seeds that follow from it."""

from __future__ import annotations

import dataclasses
import itertools
import string
import tomllib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from onecycle.errors import UsageError
from onecycle.files import read_regular
from onecycle.recipe import PRESETS, Recipe

SETTINGS = {
    "about": "", "preset": "assignment", "val": None, "limit_train": None, "limit_test": None,
    "width": 64, "averages": [], "seeds": [0], "seed_column": "", "recipe": {}, "factors": {},
    "rows": {},
}  # fmt: skip
"""What a file may have, and what it is if it is not there; README.md in this folder tells of it."""


@dataclasses.dataclass(frozen=True)
class Design:
    """What is trained.

    Args:
        settings: of the file, complete.
        recipes: by the names of the rows.
        seeds: of each row.
        signs: of each row by factor, -1 for its lower level and 1 for its upper one.
        levels: by factor the two levels, as a table shows them.
    """

    settings: Mapping[str, Any]
    recipes: dict[str, Recipe]
    seeds: dict[str, list[int]]
    signs: dict[str, dict[str, int]]
    levels: dict[str, tuple[Any, Any]]


def read_design(file: Path) -> Design:
    """A design of a TOML file.

    Raises:
        UsageError: the file cannot be read, or it has what no design has.
    """
    try:
        found = tomllib.loads(read_regular(file).decode())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as a design: {error}") from error
    try:
        return make_design(found)
    except (UsageError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{file}: {error}") from error


def make_design(found: Mapping[str, Any]) -> Design:
    """A design of a file's content: all of ``rows``, or those that the ``factors`` span."""
    if unknown := found.keys() - SETTINGS.keys():
        raise UsageError(f"{min(unknown)} is unknown; a design has {', '.join(SETTINGS)}")
    settings = SETTINGS | found
    if bool(settings["rows"]) == bool(settings["factors"]):
        raise UsageError("a design has either rows or factors")
    factors = settings["factors"]
    signs = columns(factors)
    rows: dict[str, dict[str, Any]] = dict(settings["rows"])
    row_signs = {}
    for each in signs:
        name = " ".join(f"{factor}{'+' if each[factor] > 0 else '-'}" for factor in factors)
        levels = [factors[factor]["high" if each[factor] > 0 else "low"] for factor in factors]
        rows[name] = {field: value for level in levels for field, value in level.items()}
        row_signs[name] = {factor: each[factor] for factor in factors}
    base = dataclasses.replace(PRESETS[settings["preset"]], **settings["recipe"])
    recipes = {name: dataclasses.replace(base, **fields) for name, fields in rows.items()}
    seeds = {name: list(settings["seeds"]) for name in rows}
    if column := settings["seed_column"]:
        low, high = settings["seeds"]
        for each, name in zip(signs, rows):
            seeds[name] = [high if prod(each[letter] for letter in column) > 0 else low]
    levels = {name: (_shown(row["low"]), _shown(row["high"])) for name, row in factors.items()}
    return Design(settings, recipes, seeds, row_signs, levels)


def columns(factors: Mapping[str, Mapping[str, Any]]) -> list[dict[str, int]]:
    """The rows of a two-level design: the sign of each factor, and of each base letter.

    Factors without a ``column`` are the base letters A, B, C, ... in their order, of which there
    are all combinations. A column such as "ABC" has the product of these signs, so that more factors
    go into the same rows.
    """
    own = [name for name, row in factors.items() if "column" not in row]
    letters = string.ascii_uppercase[: len(own)]
    made = []
    for signs in itertools.product((-1, 1), repeat=len(own)):
        row = dict(zip(letters, signs)) | dict(zip(own, signs))
        for name, factor in factors.items():
            if name not in own:
                row[name] = prod(row[letter] for letter in factor["column"])
        made.append(row)
    return made if own else []


def _shown(level: Mapping[str, Any]) -> Any:
    """One field by its value alone, several as FIELD=VALUE."""
    if len(level) == 1:
        return next(iter(level.values()))
    return " ".join(f"{name}={value}" for name, value in level.items())
