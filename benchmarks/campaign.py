"""How the recipe is chosen: a designed experiment, then the best of three recipes over seeds.

Each step reads what the step before left. All recipes are compared on held-out training images; the
test images are looked at by the last step alone. A factor's lower level is the present recipe's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.design import Design, read_design
from onecycle.errors import UsageError

DESIGN = Path(__file__).resolve().parent / "designs" / "campaign.toml"
BEYOND = ("sharpness",)
"""Factors outside the assignment: they are measured, and never chosen for its recipe."""
HALVING = {"present": math.inf, "effects above 1 error": 1.0, "effects above 2 errors": 2.0}
"""By recipe, how many standard errors an effect must have to change the present one."""
ALIKE = 0.0015
"""Accuracies no further apart than this are the same, and the one with fewer changes is taken."""


def assignments(fields: Mapping[str, Any]) -> str:
    """Fields as a variant of accuracy.py has them."""
    return " ".join(f"{name}={value}" for name, value in fields.items())


def improved(
    design: Design, effects: Mapping[str, Mapping[str, Any]], errors: float
) -> dict[str, Any]:
    """The present recipe with each factor at its upper level whose effect is above the noise."""
    fields = dict(design.settings["recipe"])
    for name, factor in design.settings["factors"].items():
        row = effects[name]
        is_better = name not in BEYOND and row["effect"] > errors * row["standard_error"]
        fields |= factor["high" if is_better else "low"]
    return fields


def halving(design: Design, effects: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The recipes to compare by name; one that two names would have is there once."""
    made: dict[str, dict[str, Any]] = {}
    for name, errors in HALVING.items():
        fields = improved(design, effects, errors)
        if fields not in made.values():
            made[name] = fields
    return made


def winner(recipes: Mapping[str, Mapping[str, Any]], result: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the best recipe of the halving, by its mean accuracy.

    Args:
        recipes: that were compared.
        result: of the comparison.

    Raises:
        UsageError: no run was done.
    """
    means = {
        name: row["accuracy"]["mean"]
        for name, row in result["summary"].items()
        if "accuracy" in row
    }
    if not means:
        raise UsageError("the halving has no finished run to choose by")
    present = recipes["present"]

    def changes(name: str) -> int:
        return sum(present.get(field) != value for field, value in recipes[name].items())

    alike = [name for name, mean in means.items() if mean >= max(means.values()) - ALIKE - 1e-9]
    return dict(recipes[min(alike, key=lambda name: (changes(name), -means[name]))])


def _read(out: Path, name: str, field: str) -> dict[str, Any]:
    file = out / f"{name}.json"
    try:
        result = json.loads(file.read_text("utf-8"))
        if not result[field]:
            raise KeyError(field)
        return result
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{file} has no {field} to go on with: {error!r}") from error


def _recipes(out: Path) -> dict[str, dict[str, Any]]:
    return halving(read_design(DESIGN), _read(out, "screening", "effects")["effects"])


def halving_options(out: Path) -> list[str]:
    """Options of accuracy.py, by the effects in ``screening.json``."""
    variants = [f"{name}: {assignments(fields)}" for name, fields in _recipes(out).items()]
    return [word for variant in variants for word in ("--variant", variant)]


def chosen_options(out: Path) -> list[str]:
    """Options of accuracy.py, by the means in ``halving.json``."""
    fields = winner(_recipes(out), _read(out, "halving", "summary"))
    return ["--variant", f"chosen: {assignments(fields)}"]
