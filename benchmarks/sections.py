"""The sections of ``gpu.py``: commands, their times and their order."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import campaign

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Section:
    """One command and its time."""

    name: str
    script: str
    options: tuple[str, ...]
    most_s: float
    """It is ended after so long; what it has written by then counts."""
    least_s: float
    """With less than this left it is not begun."""
    follow: Callable[[Path], list[str]] | None = None
    """More options, by what earlier sections left in the folder of the results."""


def given_rate() -> tuple[str, ...]:
    """LRMAX of the published run, where torch-lr-finder is not here to find one."""
    if importlib.util.find_spec("torch_lr_finder") is not None:
        return ()
    published = json.loads((ROOT / "results" / "cifar10" / "results.json").read_text("utf-8"))
    return ("--set", f"lr_max={published['learning_rate']['lr_max']:.4g}")


def sections(seeds: Sequence[int], references: str | None) -> list[Section]:
    """What is measured, the most important first."""
    some = [str(seed) for seed in seeds]
    speedrun = ("--preset", "speedrun", "--seeds")
    held_out = ("--val", "5000")
    test_seeds = [str(seed) for seed in range(10, 15)]

    def lasting(*epochs: int) -> list[str]:
        return [word for n in epochs for word in ("--variant", f"{n} epochs: epochs={n}")]

    made = [
        # The recipe is chosen on held-out training images; that of the chosen one is on the test's.
        Section("screening", "study.py", ("--design", str(campaign.DESIGN)), 310, 150),
        Section("halving", "accuracy.py", ("--seeds", "2", "3", "4", *held_out), 150, 70,
                campaign.halving_options),
        Section("chosen", "accuracy.py", ("--seeds", *test_seeds), 100, 45,
                campaign.chosen_options),
        Section("step", "step.py", ("--profile",), 150, 40),
        Section("accuracy", "accuracy.py", ("--seeds", *some, *given_rate()), 150, 40),
        # What 90 % take: with mirror images, without them.
        Section("speedrun", "accuracy.py", (*speedrun, *some, *lasting(5, 7)), 100, 30),
        Section("input", "input.py", ("--seconds", "0.5"), 45, 20),
        # The plain loop takes seconds for each 10,000 images.
        Section("baseline", "baseline.py", ("--rounds", "3", "--images", "20000"), 80, 45),
        Section("speedrun_epochs", "accuracy.py",
                (*speedrun, *some[:2], *held_out, *lasting(4, 5, 6, 7, 8)), 100, 30),
        Section("scaling", "scaling.py", ("--compile", "off"), 110, 40),
    ]  # fmt: skip
    if references:  # the first run of each compiles
        options = ("--references", references, "--seeds", *some[:2], "--most-seconds", "200")
        made.insert(3, Section("references", "references.py", options, 300, 90))
    return made
