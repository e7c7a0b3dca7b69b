"""What a run is: the recipe, its bounds and its presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from onecycle.errors import UsageError

PEAK_SHARE = 5 / 24
"""Where the assignment's one cycle has its peak, as a share of the epochs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained and how, to be varied with ``replace``.

    Epochs, peak and batch size are the assignment's. Decay, beta2, label smoothing and LRMAX / LRMIN
    are ours, against overfitting.
    """

    epochs: int = 24
    """Passes over the training images, 1 or more."""
    peak_epoch: float | None = None
    """Epochs until the rate is at LRMAX, above 0 and below ``epochs``; None: 5/24 of them."""
    batch_size: int = 512
    """Images a step, 2 or more."""
    lr_max: float | None = None
    """LRMAX, the rate at the peak; None: found by the range test."""
    lr_min: float | None = None
    """LRMIN, the rate of the first and the last step; None: LRMAX / ``lr_ratio``."""
    lr_ratio: float = 200.0
    """LRMAX / LRMIN where LRMIN is not given, above 1."""
    finder_start_lr: float = 1e-5
    """First rate of the range test."""
    finder_end_lr: float = 0.1
    """Last rate of the range test."""
    finder_steps: int = 100
    """Steps of the range test, 20 or more."""
    weight_decay: float = 0.4
    """Decoupled decay of the weights (not of biases and BN): a step takes rate * decay of them."""
    beta1: float = 0.9
    """Adam's decay of the gradient's mean, 0..1."""
    beta1_at_peak: float | None = None
    """The same at LRMAX, from ``beta1`` and back as the rate goes; None: not cycled."""
    beta2: float = 0.99
    """Adam's decay of the squared gradient's mean, 0..1."""
    label_smoothing: float = 0.1
    """CrossEntropyLoss: the share of the target spread over all classes, 0..1."""
    flip_probability: float = 0.5
    """How often FlipLR mirrors a training image, 0..1."""
    alternating_flip: bool = False
    """Whether each image is mirrored in every second epoch instead."""
    cutout_size_px: int = 8
    """Side of the hole in a training image, 0..32."""
    padding: str = "constant"
    """What a training image is padded with: "constant" for black, "reflect" for itself."""
    optimizer: str = "adam"
    """The assignment's "adam", or "muon" on a network prepared for it, which has no decay."""
    seed: int = 0
    """Of weights, order and augmentation."""

    @property
    def peak(self) -> float:
        """Epochs until the rate is at LRMAX."""
        return self.epochs * PEAK_SHARE if self.peak_epoch is None else self.peak_epoch

    def __post_init__(self) -> None:
        # name: (least, most, are the bounds themselves allowed)
        ranges = {
            "epochs": (1, 100_000, True),
            "peak_epoch": (0, self.epochs, False),
            "batch_size": (2, 1_000_000, True),
            "lr_max": (0, 100, False),
            "lr_min": (0, self.lr_max or 100, False),
            "lr_ratio": (1, math.inf, False),
            "finder_start_lr": (0, self.finder_end_lr, False),
            "finder_end_lr": (0, 100, True),
            "finder_steps": (20, 1_000_000, True),
            "weight_decay": (0, 100, True),
            "beta1": (0, 0.9999999, True),
            "beta1_at_peak": (0, self.beta1, True),
            "beta2": (0, 0.9999999, True),
            "label_smoothing": (0, 0.9999999, True),
            "flip_probability": (0, 1, True),
            "cutout_size_px": (0, 32, True),
            "seed": (0, 2**32 - 1, True),
        }
        choices = {"padding": ("constant", "reflect"), "optimizer": ("adam", "muon")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; it must be {' or '.join(allowed)}"
                )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and not isinstance(value, int):
                raise UsageError(f"{field.name} is {value}; it must be a whole number")
        for name, (least, most, closed) in ranges.items():
            value = getattr(self, name)
            if value is None:
                continue
            inside = least <= value <= most if closed else least < value < most
            if not inside:  # NaN is never inside
                between = "from {} to {}" if closed else "above {} and below {}"
                raise UsageError(f"{name} is {value}; it must be {between.format(least, most)}")
        if self.optimizer == "muon" and self.weight_decay:
            raise UsageError(
                f"weight_decay is {self.weight_decay}; it must be 0, muon has no decay"
            )


def with_later_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored recipe, and of fields that came after it what they were then: their defaults."""
    return asdict(Recipe()) | stored


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
