"""What is trained and how: every number of a run, with its meaning and its bounds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from onecycle.errors import UsageError

PEAK_SHARE = 5 / 24
"""Where the assignment's one cycle has its peak, as a share of the epochs."""


def setting(
    default: Any,
    about: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open: bool = False,
) -> Any:
    """A field with what it means and what it may be; ``open`` excludes both bounds."""
    return field(default=default, metadata={"about": about, "low": low, "high": high, "open": open})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained and how. Vary it with ``dataclasses.replace``.

    Epochs, peak and batch size are the assignment's. Weight decay, beta2, label smoothing and the
    ratio of LRMAX and LRMIN are ours, against overfitting. Options, checks and documents are made
    from the fields: another one needs no other place.

    Raises:
        UsageError: a value is of another type or out of its bounds.
    """

    epochs: int = setting(24, "passes over the training images", low=1, high=100_000)
    peak_epoch: float | None = setting(
        None, "epochs before the peak learning rate (5/24 of all epochs)", low=0, open=True
    )
    batch_size: int = setting(512, "images per step", low=2, high=1_000_000)
    lr_max: float | None = setting(
        None, "LRMAX, the peak learning rate (found by a range test)", low=0, high=100, open=True
    )
    lr_min: float | None = setting(
        None, "LRMIN, the first and last learning rate (LRMAX / lr-ratio)",
        low=0, high=100, open=True,
    )  # fmt: skip
    lr_ratio: float = setting(200.0, "LRMAX / LRMIN, if LRMIN is not given", low=1, open=True)
    finder_start_lr: float = setting(
        1e-5, "first learning rate of the range test", low=0, high=100, open=True
    )
    finder_end_lr: float = setting(0.1, "last learning rate of the range test", low=0, high=100)
    finder_steps: int = setting(100, "steps of the range test", low=20, high=1_000_000)
    weight_decay: float = setting(
        0.4, "decoupled decay of the weights: learning rate * decay per step", low=0, high=100
    )
    beta1: float = setting(0.9, "Adam's decay of the mean gradient", low=0, high=0.9999999)
    beta1_at_peak: float | None = setting(
        None, "beta1 at the peak learning rate (not cycled)", low=0, high=0.9999999
    )
    beta2: float = setting(0.99, "Adam's decay of the squared gradient", low=0, high=0.9999999)
    label_smoothing: float = setting(
        0.1, "share of the target spread over all classes", low=0, high=0.9999999
    )
    flip_probability: float = setting(
        0.5, "probability that a training image is mirrored", low=0, high=1
    )
    alternating_flip: bool = setting(False, "mirror each image in every second epoch instead")
    cutout_size_px: int = setting(8, "side of the hole in a training image", low=0, high=32)
    padding: Literal["constant", "reflect"] = setting(
        "constant", "border of a training image before the crop: black, or mirrored"
    )
    optimizer: Literal["adam", "muon"] = setting(
        "adam", "the assignment's Adam, or Muon on a prepared network"
    )
    seed: int = setting(0, "of weights, order and augmentation", low=0, high=2**32 - 1)

    @property
    def peak(self) -> float:
        """Epochs before the peak learning rate."""
        return self.epochs * PEAK_SHARE if self.peak_epoch is None else self.peak_epoch

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each, TYPES[each.name], getattr(self, each.name))
        for name, limit in (
            ("peak_epoch", "epochs"), ("lr_min", "lr_max"), ("finder_start_lr", "finder_end_lr"),
        ):  # fmt: skip
            value, most = getattr(self, name), getattr(self, limit)
            if value is not None and most is not None and not value < most:
                raise UsageError(f"{name} is {value}; it must be below {limit}, {most}")
        if self.beta1_at_peak is not None and self.beta1_at_peak > self.beta1:
            raise UsageError(
                f"beta1_at_peak is {self.beta1_at_peak}; it must be from 0 to beta1, {self.beta1}"
            )
        if self.optimizer == "muon" and self.weight_decay:
            raise UsageError(
                f"weight_decay is {self.weight_decay}; it must be 0, muon has no decay"
            )


def _check(of: Field, kind: Any, value: Any) -> None:
    name = of.name
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UsageError(f"{name} is {value!r}; it must be {' or '.join(get_args(kind))}")
        return
    if value is None and type(None) in get_args(kind):
        return
    if kind is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r}; it must be True or False")
        return
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        wanted = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} is {value!r}; it must be {wanted}")
    low, high = of.metadata["low"], of.metadata["high"]
    # NaN is never inside.
    if not (low < value < high if of.metadata["open"] else low <= value <= high):
        raise UsageError(f"{name} is {value}; it must be {bounds(of)}")


def bounds(of: Field) -> str:
    """What a field may be, in words."""
    low, high, is_open = (of.metadata[key] for key in ("low", "high", "open"))
    if high == math.inf:
        return f"above {low:g}" if is_open else f"{low:g} or more"
    return f"above {low:g} and below {high:g}" if is_open else f"from {low:.10g} to {high:.10g}"


TYPES = get_type_hints(Recipe)


def as_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe in plain data, with the peak that it has."""
    return asdict(recipe) | {"peak_epoch": recipe.peak}


def with_later_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored recipe, with the defaults of fields that did not exist when it was stored."""
    return asdict(Recipe()) | stored


def read_recipe(file: str | os.PathLike) -> Recipe:
    """The recipe of a TOML or JSON file, or of the ``results.json`` of a run.

    Args:
        file: names fields of :class:`Recipe`; others have their defaults.

    Raises:
        UsageError: it cannot be read, or names a field that there is not, or a value is out of its
            bounds.
    """
    file = Path(file)
    try:
        content = file.read_bytes()
        if file.suffix.lower() == ".toml":
            import tomllib

            stored = tomllib.loads(content.decode())
        else:
            stored = json.loads(content)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{file} is neither TOML nor JSON: {reason}") from error
    if isinstance(stored, dict) and isinstance(stored.get("recipe"), dict):
        stored = stored["recipe"]  # of a run
    if not isinstance(stored, dict):
        raise UsageError(f"{file} is no recipe; it must name fields, such as epochs = 24")
    if unknown := sorted(set(stored) - set(TYPES)):
        raise UsageError(f"{file}: there is no field {unknown[0]}; there are {', '.join(TYPES)}")
    try:
        return Recipe(**stored)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


PRESETS = {
    "assignment": Recipe(),
    # Mirroring changes what a digit is; small enough for two minutes on two cores.
    "digits": Recipe(epochs=8, batch_size=64, finder_steps=40, flip_probability=0.0),
    # Outside the assignment: its network, and whatever learns in the fewest epochs.
    "speedrun": Recipe(
        epochs=8,
        optimizer="muon",
        lr_max=0.1,
        lr_ratio=1000.0,
        weight_decay=0.0,
        beta1=0.6,
        label_smoothing=0.2,
        alternating_flip=True,
        cutout_size_px=0,
        padding="reflect",
    ),
}
