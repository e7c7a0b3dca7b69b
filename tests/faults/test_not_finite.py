"""Values that are not finite."""

import math
import random
import re

import small_runs
import torch
from torch import nn

from onecycle.errors import CheckpointError, DivergedError

PLACES = ("images", "weights", "loss", "gradient", "BN buffer", "optimizer state")
SAID = re.compile(r"in epoch (\d+), step (\d+), at rate [\d.e-]+; the losses before: \S")
LAST_STEP = small_runs.EPOCHS * small_runs.STEPS - 1
CASES = [
    (place, value, step, every_s)
    for place in PLACES
    for value in (math.nan, math.inf)
    for step in (0, LAST_STEP // 2, LAST_STEP)
    for every_s in (0.0, 600.0)  # after each step, after each epoch
]


class Loss(nn.CrossEntropyLoss):
    factor = 1.0

    def forward(self, output, labels):
        return super().forward(output, labels) * self.factor


def train_poisoned(place, value, at, run, every_s):
    """What the run says that is poisoned at a step."""
    parts, criterion = small_runs.make(), Loss()
    model, optimizer = parts["model"], parts["optimizer"]

    def spoil(step, images):
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

    options = {"every_s": every_s, "evaluate": True, "spoil": spoil, "criterion": criterion}
    try:
        small_runs.train(parts, run, **options)
    except DivergedError as error:
        return str(error)
    return "nothing: it went to its end"


def is_finite(value):
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def end_of(run):
    """What a run ends in that is resumed."""
    parts = small_runs.make()
    try:
        small_runs.train(parts, run, evaluate=True)
        return small_runs.digest(parts)
    except (CheckpointError, DivergedError) as error:
        return str(error)


def test_not_finite(trials, tmp_path):
    """NaN and Inf in six places at the first, a middle and the last step."""
    num_files, latest, wanted = 0, 0, end_of(tmp_path / "reference")
    cases = random.Random(0).sample(CASES, trials.scaled(len(CASES), least=8))
    for place, value, at, every_s in cases:
        if place in ("images", "optimizer state"):
            at = max(at, 1)  # the first batch is refused in other words; there is no state before
        run = tmp_path / f"{place} {value} {at} {every_s}"
        about = f"{value} in {place} at step {at}, saved every {every_s:g} s"
        said = train_poisoned(place, value, at, run, every_s)
        # Saved once an epoch, what no loss shows is found at the end of the epoch.
        end = at if every_s == 0 else at // small_runs.STEPS * small_runs.STEPS + 3
        found = SAID.search(said)
        epoch, step = map(int, found.groups()) if found else (0, -1)
        if not at <= step <= end + 1:
            trials.failures.append(f"{about}: {said}")
        else:
            latest = max(latest, step - at)
            if epoch != step // small_runs.STEPS + 1:
                trials.failures.append(f"{about}: the wrong epoch: {said}")
        for file in run.iterdir() if run.exists() else ():
            num_files += 1
            if not is_finite(small_runs.opened(file.read_bytes())):
                trials.failures.append(f"{about}: {file.name} holds it")
        if (ended := end_of(run)) != wanted:
            trials.failures.append(f"{about}: resumed, it ends in {ended}, not {wanted}")
    trials.record(
        cases=len(cases), places=list(PLACES), files_read=num_files,
        most_steps_until_stopped=latest,
    )  # fmt: skip
