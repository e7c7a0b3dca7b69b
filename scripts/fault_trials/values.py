"""Values that are not finite."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import small_runs
import torch
from torch import nn

from onecycle.errors import CheckpointError, DivergedError

from .common import SEED, scaled

PLACES = ("images", "weights", "loss", "gradient", "BN buffer", "optimizer state")


class _Loss(nn.CrossEntropyLoss):
    factor = 1.0

    def forward(self, output, labels):
        return super().forward(output, labels) * self.factor


def _poisoned(place: str, value: float, at: int, run: Path, every_s: float) -> str:
    """What the run says that is poisoned at a step."""
    parts, criterion = small_runs.make(), _Loss()
    model, optimizer = parts["model"], parts["optimizer"]

    def spoil(step: int, images: torch.Tensor) -> torch.Tensor:
        if step != at:
            return images
        if place == "images":
            images[1, 2, 0, 0] = value
        elif place == "weights":
            model[0].weight.data[0, 0, 0, 0] = value
        elif place == "loss":
            criterion.factor = value
        elif place == "gradient":
            model[4].bias.register_hook(lambda gradient: gradient * value)
        elif place == "BN buffer":
            model[1].running_var[0] = value
        else:
            optimizer.state[model[4].bias]["exp_avg_sq"][0] = value
        return images

    try:
        small_runs.train(
            parts, run, every_s=every_s, evaluate=True, spoil=spoil, criterion=criterion
        )
    except DivergedError as error:
        return str(error)
    return "nothing: it went to its end"


def _all_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_all_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


SAID = re.compile(r"in epoch (\d+), step (\d+), at rate [\d.e-]+; the losses before: \S")


def not_finite(share: float, folder: Path) -> dict[str, Any]:
    """NaN and Inf in six places at the first, a middle and the last step."""
    failures, files, latest = [], 0, 0
    last = small_runs.EPOCHS * small_runs.STEPS - 1
    reference = small_runs.make()
    small_runs.train(reference, folder / "reference", evaluate=True)
    wanted = small_runs.digest(reference)
    cases = [
        (place, value, step, every_s)
        for place in PLACES
        for value in (math.nan, math.inf)
        for step in (0, last // 2, last)
        for every_s in (0.0, 600.0)  # after each step, after each epoch
    ]
    cases = random.Random(SEED).sample(cases, scaled(len(cases), share, 8))
    for place, value, at, every_s in cases:
        if place == "optimizer state":
            at = max(at, 1)  # before the first step there is none
        run = folder / f"{place} {value} {at} {every_s}"
        about = f"{value} in {place} at step {at}, saved every {every_s:g} s"
        said = _poisoned(place, value, at, run, every_s)
        found = SAID.search(said)
        # Saved once an epoch, what no loss shows is found at the end of the epoch.
        end = at if every_s == 0 else at // small_runs.STEPS * small_runs.STEPS + 3
        if found is None or not at <= int(found[2]) <= end + 1:
            failures.append(f"{about}: {said}")
        else:
            latest = max(latest, int(found[2]) - at)
            if int(found[1]) != int(found[2]) // small_runs.STEPS + 1:
                failures.append(f"{about}: the wrong epoch: {said}")
        for file in run.iterdir() if run.exists() else ():
            files += 1
            if not _all_finite(small_runs.opened(file.read_bytes())):
                failures.append(f"{about}: {file.name} holds it")
        parts = small_runs.make()
        try:
            small_runs.train(parts, run, evaluate=True)
            ended = small_runs.digest(parts)
        except (CheckpointError, DivergedError) as error:
            ended = str(error)
        if ended != wanted:
            failures.append(f"{about}: gone on with it ends in {ended}, not {wanted}")
    return {
        "cases": len(cases), "places": list(PLACES), "files_read": files,
        "most_steps_until_stopped": latest, "failures": failures,
    }  # fmt: skip
