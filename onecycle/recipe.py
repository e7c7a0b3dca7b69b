"""What is trained and how: every number of a run, with its meaning and its bounds."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from onecycle.errors import UsageError
from onecycle.files import read_regular
from onecycle.schema import parse_json, shown

PEAK_SHARE = 5 / 24
"""Where the assignment's one cycle has its peak, as a share of the epochs."""


VAL_SHARE = 0.2
"""Share of each class that is held out of pictures that are not split."""


def setting(
    default: Any,
    about: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open: bool = False,
) -> Any:
    """A field with its meaning and its bounds, from which options, help and checks are made.

    Args:
        default: its value if none is given.
        about: what it means; if the default is None, what that stands for is in parentheses.
        low: least value.
        high: greatest value.
        open: whether the bounds themselves are excluded.
    """
    return field(default=default, metadata={"about": about, "low": low, "high": high, "open": open})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained and how. Change it with ``dataclasses.replace``.

    For CIFAR-10, epochs, peak and batch size are the assignment's. Decay, beta2, label smoothing and
    reflected borders are ours, against overfitting. What is None is chosen when the images are known, and the run
    says how. Options, help and checks are made from the fields: a new one needs no other place.

    Raises:
        UsageError: a value is of another type or out of its bounds.
    """

    # fmt: off
    epochs: int | None = setting(
        None, "passes over the training images (24, more for few images)", low=1, high=100_000)
    peak_epoch: float | None = setting(
        None, "epochs until the peak learning rate (5/24 of all)", low=0, open=True)
    batch_size: int | None = setting(
        None, "images per step (512, fewer for few images)", low=2, high=1_000_000)
    lr_max: float | None = setting(
        None, "LRMAX, the peak learning rate (found by a range test)", low=0, high=100, open=True)
    lr_min: float | None = setting(
        None, "LRMIN, the first and last learning rate (LRMAX / lr_ratio)",
        low=0, high=100, open=True)
    lr_ratio: float | None = setting(
        None, "LRMAX / LRMIN if lr_min is not given (found by the range test; 200 without one)",
        low=1, open=True)
    lr_fallback: bool = setting(
        True, "train at a safe LRMAX if the range test finds none, instead of an error")
    finder_start_lr: float = setting(
        1e-6, "first learning rate of the range test", low=0, high=100, open=True)
    finder_end_lr: float | None = setting(
        None, "last learning rate of the range test (0.1; 1 for Muon, 10 for SGD)",
        low=0, high=100)
    finder_sweeps: int | None = setting(
        None, "sweeps of the range test (1 to 3: with its steps a tenth of the training at most)",
        low=1, high=100)
    finder_steps: int | None = setting(
        None, "steps of each sweep (20 to 100: with all sweeps a tenth of the training at most)",
        low=20, high=1_000_000)
    weight_decay: float = setting(
        0.6, "decoupled weight decay; biases and batch norm have none", low=0, high=100)
    beta1: float = setting(
        0.9, "decay of the optimizer's running mean of gradients", low=0, high=0.9999999)
    beta1_at_peak: float | None = setting(
        None, "beta1 at the peak, moved in step with the learning rate (beta1 is constant)",
        low=0, high=0.9999999)
    beta2: float = setting(
        0.99, "decay of Adam's running mean of squared gradients", low=0, high=0.9999999)
    label_smoothing: float = setting(
        0.1, "share of each target that is spread over all classes", low=0, high=0.9999999)
    class_weights: Literal["none", "auto"] = setting(
        "none", "weights of the loss: none, or auto for more weight on images of rare classes")
    clip_norm: float = setting(
        0.0, "the gradient is scaled down to this norm if it is longer; 0 does not clip", low=0)
    mixup: float = setting(
        0.0, "alpha of Mixup, which blends images in pairs; 0 is off, 0.2 is usual",
        low=0, high=100)
    cutmix: float = setting(
        0.0, "alpha of CutMix, which pastes a part of another image; 0 is off, 1 is usual",
        low=0, high=100)
    sharpness: float = setting(
        0.0, "radius of sharpness-aware minimisation, whose steps take twice the time; 0 is off, 0.05 "
        "is usual (Foret et al. 2021)", low=0, high=100)
    sharpness_from: float = setting(
        0.0, "epochs before the first such step", low=0)
    average_steps: int = setting(
        0, "steps over which the weights are averaged, beside the training; 0 is off",
        low=0, high=1_000_000)
    keep: Literal["last", "average", "best"] = setting(
        "last", "weights that the run keeps: of the last step, their average, or of the epoch that "
        "is best on held-out images")
    flip_probability: float = setting(
        0.5, "how often a training image is mirrored", low=0, high=1)
    alternating_flip: bool = setting(
        False, "mirror each training image in every second epoch instead")
    cutout_size_px: int | None = setting(
        None, "side of the square that is cut out of a training image, in pixels (a quarter of "
        "the image's: 8 of 32)", low=0, high=4096)
    padding: Literal["constant", "reflect"] = setting(
        "reflect", "border of a training image before the crop: black, or its own reflection")
    image_size: int | None = setting(
        None, "height and width of the images, in pixels (32, or that of your own arrays)",
        low=8, high=4096)
    resize: Literal["crop", "pad"] = setting(
        "crop", "how a picture becomes square: its middle, or all of it with black borders")
    body_rate: float = setting(
        1.0, "learning rate of all layers but the last, as a share of the last one's",
        low=0, high=1, open=False)
    head_rate: float = setting(
        1.0, "rate of the last layer as a share; its first weights are times it, its decay divided "
        "by it, as if the scores were times it (Page 2019)", low=0.001, high=1)
    vector_rate: float = setting(
        1.0, "learning rate of biases and of batch norm's scales as a share of the others'",
        low=0, high=100)
    vector_decay: bool = setting(False, "decay biases and batch norm's scales too")
    decay_per_step: float | None = setting(
        None, "decay of a step at the peak, in place of weight_decay: it does not follow the range "
        "test (LRMAX * weight_decay)", low=0, high=1, open=True)
    start: Literal["default", "whitened"] = setting(
        "default", "first weights: PyTorch's, or a first layer that whitens patches and identities "
        "in the others (Page 2019, Jordan 2024)")
    bn_groups: int = setting(
        1, "parts of a batch that batch norm normalises on their own, in training; a batch that they "
        "do not divide is one part (Hoffer et al. 2017)", low=1, high=1024)
    optimizer: Literal["adam", "muon"] = setting(
        "adam", "the assignment's Adam, or Muon with an initialisation of its own")
    seed: int = setting(
        0, "random seed of weights, image order and augmentation", low=0, high=2**32 - 1)
    # fmt: on

    @property
    def peak(self) -> float | None:
        """Epochs until the learning rate is at LRMAX; None: it follows from the images."""
        if self.peak_epoch is None and self.epochs is not None:
            return self.epochs * PEAK_SHARE
        return self.peak_epoch

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each.name, getattr(self, each.name), TYPES[each.name], each.metadata)
        for name, limit in _BELOW.items():
            value, high = getattr(self, name), getattr(self, limit)
            limits = self.__dataclass_fields__[name].metadata | {"high": high}
            if value is not None and high is not None and not _is_inside(value, limits):
                allowed = bounds({**limits, "high": f"{limit} ({high})"})
                raise UsageError(f"{name} is {value}; it must be {allowed}")
        if self.optimizer == "muon" and self.weight_decay:
            raise UsageError(
                f"weight_decay is {self.weight_decay}; it must be 0 with optimizer muon, "
                "which has no decay"
            )
        for name in _ADAM_ALONE if self.optimizer != "adam" else ():
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise UsageError(
                    f"{name} is {getattr(self, name)}; it goes with optimizer adam alone, leave it out"
                )
        if self.decay_per_step is not None and not self.weight_decay:
            raise UsageError(
                f"weight_decay is {self.weight_decay} and decay_per_step {self.decay_per_step}; "
                "leave out weight_decay, which is replaced"
            )
        if self.sharpness_from and not self.sharpness:
            raise UsageError(
                f"sharpness_from is {self.sharpness_from} and sharpness 0; give sharpness, such as 0.05"
            )
        if self.keep == "average" and not self.average_steps:
            raise UsageError(
                "keep is average; average_steps must be 1 or more then, such as an epoch's steps"
            )


_ADAM_ALONE = (
    "body_rate", "head_rate", "vector_rate", "vector_decay", "decay_per_step", "start",
)  # fmt: skip
"""Fields that the other optimizer has ways of its own for."""
_BELOW = {
    "peak_epoch": "epochs",
    "lr_min": "lr_max",
    "finder_start_lr": "finder_end_lr",
    "beta1_at_peak": "beta1",
    "sharpness_from": "epochs",
}
"""Fields that another one bounds."""


def type_of(hint: Any) -> tuple[Any, bool]:
    """A field's type without None, and whether it may be None."""
    if get_origin(hint) is Literal or not get_args(hint):
        return hint, False
    (kind,) = (each for each in get_args(hint) if each is not type(None))
    return kind, True


TYPES = {name: type_of(hint) for name, hint in get_type_hints(Recipe).items()}


def bounds(limits: Mapping[str, Any]) -> str:
    """The bounds of a :func:`setting` in words; nothing if it has none."""
    low, high, is_open = limits["low"], limits["high"], limits["open"]
    if low == -math.inf:
        return ""
    if high == math.inf:
        return f"above {low}" if is_open else f"{low} or more"
    return f"above {low} and below {high}" if is_open else f"from {low} to {high}"


def describe(setting: Field) -> str:
    """What a field means, its default and its bounds, in a line for help and documents."""
    default = setting.default
    shown = "" if default is None or isinstance(default, bool) else f" ({default})"
    limits = bounds(setting.metadata)
    return f"{setting.metadata['about']}{shown}{'; ' if limits else ''}{limits}"


Recipe.__doc__ += "\n    Args:\n" + "".join(
    f"        {each.name}: {describe(each)}.\n" for each in fields(Recipe)
)


def _is_inside(value: float, limits: Mapping[str, Any]) -> bool:
    low, high = limits["low"], limits["high"]  # NaN is never inside
    is_inside = low < value < high if limits["open"] else low <= value <= high
    return is_inside and value <= sys.float_info.max


def _check(name: str, value: Any, types: tuple[Any, bool], limits: Mapping[str, Any]) -> None:
    kind, may_be_none = types
    if value is None and may_be_none:
        return
    if choices := get_args(kind):
        allowed, is_right = " or ".join(choices), isinstance(value, str) and value in choices
    elif kind is bool:
        allowed, is_right = "True or False", isinstance(value, bool)
    else:
        allowed = "a whole number" if kind is int else "a number"
        is_right = isinstance(value, int if kind is int else (int, float))
        is_right &= not isinstance(value, bool)  # which Python takes for 0 or 1
    if not is_right:
        raise UsageError(f"{name} is {shown(value)}; it must be {allowed}")
    if kind in (int, float) and not _is_inside(value, limits):
        allowed = bounds(limits) or "a finite number"
        raise UsageError(f"{name} is {shown(value)}; it must be {allowed}")


def as_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, with the peak that follows from the epochs filled in."""
    return asdict(recipe) | {"peak_epoch": recipe.peak}


CHOSEN_LATER = {"epochs", "peak_epoch", "batch_size", "cutout_size_px", "image_size"}
"""Fields that are chosen when the images are known, if they are not given."""


def may_be(stored: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether a stored recipe may be this one, where one of them does not know its images yet."""
    stored = with_later_fields(stored)
    return all(
        stored[name] == value or (name in CHOSEN_LATER and None in (stored[name], value))
        for name, value in as_data(recipe).items()
    )


def with_later_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored recipe; fields that are newer than that of a run have the values that were true then."""
    is_whole = {"weight_decay", "beta1", "beta2", "label_smoothing", "seed"} <= stored.keys()
    return asdict(Recipe()) | ({"padding": "constant"} if is_whole else {}) | stored


def read_recipe(file: str | os.PathLike, base: Recipe = Recipe()) -> Recipe:  # noqa: B008
    """A recipe from a file.

    Args:
        file: TOML or JSON with some fields of a recipe, or ``results.json`` of a run.
        base: gives the fields that the file does not name; a run's ``results.json`` is complete.

    Raises:
        UsageError: the file cannot be read, or a field is unknown or has a value that it may not
            have; the message names the file, the field and what is allowed.
    """
    file = Path(file)
    stored = _read_mapping(file)
    try:
        if isinstance(stored.get("recipe"), dict):
            return stored_recipe(stored["recipe"])
        return stored_recipe(asdict(base) | stored)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def stored_recipe(stored: Mapping[str, Any]) -> Recipe:
    """The recipe of plain data that :func:`as_data` gave, with what an older version left out.

    Raises:
        UsageError: a field is unknown or has a value that it may not have.
    """
    names = [each.name for each in fields(Recipe)]
    for name in stored:
        if name not in names:
            raise UsageError(f"{shown(name)} is no field of a recipe, which has {', '.join(names)}")
    recipe = Recipe(**with_later_fields(stored))
    # What as_data filled in: the peak moves with the epochs again.
    follows = recipe.epochs is not None and recipe.peak == recipe.epochs * PEAK_SHARE
    return replace(recipe, peak_epoch=None) if follows else recipe


def _read_mapping(file: Path) -> dict[str, Any]:
    import tomllib  # here, since most commands read no recipe

    is_toml = file.suffix.lower() == ".toml"
    try:
        content = read_regular(file)
        found = tomllib.loads(content.decode()) if is_toml else parse_json(content)
    except OSError as error:
        raise UsageError(f"cannot read the recipe {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also of the encoding
        kind = "TOML" if is_toml else "JSON (a TOML file ends in .toml)"
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"the recipe {file} is not {kind}: {said}") from error
    if not isinstance(found, dict):
        raise UsageError(f'the recipe {file} must have fields, such as {{"epochs": 24}}')
    return found


PRESETS = {
    "assignment": Recipe(epochs=24, batch_size=512, cutout_size_px=8),
    # No mirroring and no reflections, which change what a digit is. Small enough for two minutes on
    # two cores.
    "digits": Recipe(
        epochs=8,
        batch_size=64,
        finder_steps=40,
        flip_probability=0.0,
        cutout_size_px=8,
        padding="constant",
        weight_decay=0.4,
    ),
    # Outside the assignment: its network, and a training that learns in the fewest epochs.
    "speedrun": Recipe(
        epochs=8,
        batch_size=512,
        optimizer="muon",
        lr_max=0.1,
        lr_ratio=1000.0,
        weight_decay=0.0,
        beta1=0.6,
        label_smoothing=0.2,
        alternating_flip=True,
        cutout_size_px=0,
    ),
}
