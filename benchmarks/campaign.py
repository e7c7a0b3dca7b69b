"""How the recipe is chosen: a factorial, then the best of three recipes over seeds, then it alone.

Each step reads what the step before left. All recipes are compared on held-out training images; the
test images are looked at by the last step alone.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.effects import DECAY
from onecycle.errors import UsageError

PRESENT = {"lr_max": 0.0023, "weight_decay": 0.4, "label_smoothing": 0.1, "padding": "constant"}
"""The present recipe, as far as the campaign may change it."""
LEVELS: dict[str, tuple[Any, Any]] = {
    "lr_max": (0.0016, 0.0032),
    DECAY: (0.0009, 0.0019),
    "label_smoothing": (0.1, 0.2),
    "padding": ("constant", "reflect"),
}
WORDS = ("rate", "decay", "smoothing", "padding")
"""The factors in the names of variants."""
HALVING = {"present": math.inf, "effects above 1 error": 1.0, "effects above 2 errors": 2.0}
"""By recipe, how many standard errors an effect must have to change the present one."""
ALIKE = 0.0015
"""Accuracies no further apart than this are the same, and the one with fewer changes is taken."""


def assignments(fields: Mapping[str, Any]) -> str:
    """Fields as a variant of accuracy.py has them."""
    return " ".join(f"{name}={value}" for name, value in fields.items())


def with_decay(levels: Mapping[str, Any]) -> dict[str, Any]:
    """Levels as recipe fields: the decay that follows from the decay per step and the rate."""
    fields = {name: value for name, value in levels.items() if name != DECAY}
    if DECAY in levels:
        fields["weight_decay"] = float(f"{levels[DECAY] / levels['lr_max']:.6g}")
    return fields


def factorial() -> list[str]:
    """Options of accuracy.py: all combinations, half with each of two seeds.

    Which half is the sign of the interaction of all four factors, so the seed's effect is not
    mixed with that of any one factor, nor of two or three.
    """
    made = []
    for signs in itertools.product((0, 1), repeat=len(LEVELS)):
        chosen = {name: pair[sign] for sign, (name, pair) in zip(signs, LEVELS.items())}
        fields = with_decay(chosen) | {"seed": sum(signs) % 2}
        name = " ".join(f"{word}{'-+'[sign]}" for word, sign in zip(WORDS, signs))
        made += ["--variant", f"{name}: {assignments(fields)}"]
    return made


def improved(effects: Mapping[str, Mapping[str, Any]], errors: float) -> dict[str, Any]:
    """The present recipe with each factor at its better level whose effect is above the noise."""
    levels = dict(PRESENT)
    for name, row in effects.items():
        if abs(row["effect"]) > errors * row["standard_error"]:
            levels[name] = row["high"] if row["effect"] > 0 else row["low"]
    return PRESENT | with_decay(levels)


def halving(effects: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The recipes to compare by name; one that two names would have is there once."""
    made: dict[str, dict[str, Any]] = {}
    for name, errors in HALVING.items():
        fields = PRESENT if errors == math.inf else improved(effects, errors)
        if fields not in made.values():
            made[name] = dict(fields)
    return made


def winner(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of the halving's results the fields of the best recipe, by its mean accuracy.

    Raises:
        UsageError: no run was done.
    """
    found = []
    for name, row in result["summary"].items():
        if "accuracy" in row:
            fields = {field: result["recipes"][name][field] for field in PRESENT}
            changes = sum(fields[field] != value for field, value in PRESENT.items())
            found.append((row["accuracy"]["mean"], changes, fields))
    if not found:
        raise UsageError("the halving has no finished run to choose by")
    best = max(mean for mean, _, _ in found)
    alike = [row for row in found if row[0] >= best - ALIKE - 1e-9]
    return min(alike, key=lambda row: (row[1], -row[0]))[2]


def _read(out: Path, name: str, field: str) -> dict[str, Any]:
    file = out / f"{name}.json"
    try:
        result = json.loads(file.read_text("utf-8"))
        if not result[field]:
            raise KeyError(field)
        return result
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{file} has no {field} to go on with: {error!r}") from error


def halving_options(out: Path) -> list[str]:
    """Options of accuracy.py, by the effects in ``factorial.json``."""
    recipes = halving(_read(out, "factorial", "effects")["effects"])
    variants = [f"{name}: {assignments(fields)}" for name, fields in recipes.items()]
    return [word for variant in variants for word in ("--variant", variant)]


def chosen_options(out: Path) -> list[str]:
    """Options of accuracy.py, by the means in ``halving.json``."""
    return ["--variant", f"chosen: {assignments(winner(_read(out, 'halving', 'summary')))}"]
