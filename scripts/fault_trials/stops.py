"""Trainings that are killed and stopped."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import small_runs
from torch import nn

from onecycle import training_results, training_run
from onecycle.commands import train
from onecycle.data.loaders import ResidentLoader
from onecycle.training.checkpoint import LAST, PREVIOUS
from onecycle.training.checkpoint import run as checkpoint
from onecycle.training.progress import TrainingLog
from onecycle.training.signals import Signals

from .common import SEED, Progress, scaled


def kills(share: float, folder: Path) -> dict[str, Any]:
    """SIGKILL at random moments, and at the named points inside a save."""
    draw, failures = random.Random(SEED), []

    def go_on(run: Path, every_s: float, left: Path | None = None) -> None:
        parts = small_runs.make()
        small_runs.train(parts, run, every_s=every_s, evaluate=True)
        if left is not None:
            left.write_text(small_runs.digest(parts))

    def end_of(run: Path, every_s: float) -> str:
        left = folder / "digest"
        left.unlink(missing_ok=True)
        status = small_runs.in_child(lambda: go_on(run, every_s, left))
        return left.read_text() if status == 0 and left.exists() else f"exit status {status}"

    wanted = end_of(folder / "never stopped", 0.0)
    if not re.fullmatch("[0-9a-f]{64}", wanted):
        raise RuntimeError(f"the run that was never stopped: {wanted}")
    begun = time.perf_counter()
    small_runs.in_child(lambda: go_on(folder / "timed", 0.0))
    whole_s = time.perf_counter() - begun

    def finish(run: Path, every_s: float, about: str) -> None:
        found = end_of(run, every_s)
        if found != wanted:
            failures.append(f"{about}: {found}, not {wanted}")
        left = {file.name for file in run.iterdir()} - {LAST, PREVIOUS}
        if left:
            failures.append(f"{about}: left {sorted(left)}")
        shutil.rmtree(run)

    total, runs, at_random = scaled(200, share, 3), 0, 0
    progress = Progress(total)
    while at_random < total:
        every_s, moments = draw.choice([0.0, 0.01, 600.0]), []
        for _ in range(min(draw.randint(1, 3), total - at_random)):
            moments.append(draw.uniform(0, whole_s))
            run = folder / "killed"
            run.mkdir(exist_ok=True)
            status = small_runs.in_child(lambda: go_on(run, every_s), after_s=moments[-1])
            if status not in (0, -signal.SIGKILL):
                failures.append(f"run {runs}: a child ended with {status}")
            at_random += status == -signal.SIGKILL
            if status == 0:  # it was faster than the signal
                break
        runs += 1
        finish(run, every_s, f"run {runs}, killed after {[round(s, 3) for s in moments]} s")
        progress.at(at_random)

    named = Counter()
    for point in small_runs.POINTS:
        for _ in range(scaled(3, share)):
            run = folder / "killed"
            for _ in range(draw.randint(1, 3)):
                number = draw.randint(2, 3)  # of the saves of this process

                def die_there() -> None:
                    small_runs.kill_at(point, number)
                    go_on(run, 0.0)

                status = small_runs.in_child(die_there)
                if status != -signal.SIGKILL:
                    failures.append(f"{point} of save {number}: ended with {status}")
                named[point] += status == -signal.SIGKILL
            runs += 1
            finish(run, 0.0, f"run {runs}, killed at {point}")
    return {
        "random_kills": at_random, "kills_inside_a_save": dict(named), "runs": runs,
        "steps_a_run": small_runs.EPOCHS * small_runs.STEPS, "failures": failures,
    }  # fmt: skip


class _Tiny(nn.Sequential):
    """In place of the real network, so that a whole command line takes a moment."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 4, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, num_classes),
        )  # fmt: skip


COMMAND = [
    "--dataset", "digits", "--epochs", "4", "--batch-size", "16", "--limit-train", "320",
    "--limit-test", "64", "--lr-max", "0.01", "--device", "cpu",
]  # fmt: skip


def _command_line(out: Path, events: Path) -> int:
    """train.py in this process, a letter to ``events`` for all that happens; its exit code.

    m: begins; b: a batch; e: an epoch is done; s: a save begins; !: a signal was noted.
    """
    note = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def before(owner: Any, name: str, letter: bytes) -> None:
        real = getattr(owner, name)

        def noted(*args, **options):
            os.write(note, letter)
            return real(*args, **options)

        setattr(owner, name, noted)

    before(checkpoint.run, "write_state", b"s")
    before(TrainingLog, "on_epoch", b"e")
    before(Signals, "_on_signal", b"!")
    real = ResidentLoader.__iter__

    def batches(self):
        for batch in real(self):
            if self.batches.train:
                os.write(note, b"b")
            yield batch

    ResidentLoader.__iter__ = batches
    training_run.CustomResNet = _Tiny
    training_run.draw = lambda *args, **options: {}
    training_run.explain = lambda *args: None
    training_results.build_report = lambda *args, **options: ""
    said = os.open(out.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    os.write(note, b"m")
    code = train.main([*COMMAND, "--out", str(out)])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return code


def _result(out: Path) -> str:
    """Weights, steps and history of a finished run, as a digest of all but its seconds."""
    history = json.loads((out / "results.json").read_text("utf-8"))["history"]
    files = [(out / name).read_bytes() for name in ("model.pt", "steps.csv")]
    return small_runs.fingerprint([history, *files])


def signals(share: float, folder: Path) -> dict[str, Any]:
    """SIGTERM or SIGINT at random moments of the real command line."""
    draw, failures, noted, most = random.Random(SEED), [], Counter(), Counter()
    events, total = folder / "events", scaled(50, share, 2)

    def start(out: Path, **options) -> tuple[int, str]:
        events.unlink(missing_ok=True)
        status = small_runs.in_child(lambda: _command_line(out, events), **options)
        return status, events.read_text() if events.exists() else ""

    status, _ = start(folder / "whole")
    if status:
        raise RuntimeError(f"exit code {status}: {(folder / 'whole.txt').read_text()[-500:]}")
    wanted, begun = _result(folder / "whole"), time.perf_counter()
    start(folder / "timed")
    whole_s, progress = time.perf_counter() - begun, Progress(total)
    while (done := noted["in the training"]) < total:
        if noted.total() > 20 * (total + 5):
            failures.append(f"only {done} signals came in the training: {dict(noted)}")
            break
        out = folder / f"run {noted.total()}"
        number = draw.choice([signal.SIGTERM, signal.SIGINT])
        after_s = draw.uniform(0.1 * whole_s, whole_s)
        status, happened = start(out, number=number, after_s=after_s)
        about = f"{out.name}, {number.name} after {after_s:.3f} s ({happened})"
        if status == 0 or "m" not in happened:  # after or before the command line
            shutil.rmtree(out, ignore_errors=True)
            whole_s *= 0.98 if status == 0 else 1.02
            noted["missed it"] += 1
            continue
        in_training = "!" in happened
        noted["in the training" if in_training else "beside it"] += 1
        progress.at(done + in_training)
        # Beside the training SIGTERM simply ends it, which a shell calls 143 as well.
        code = status if in_training or status >= 0 else 128 - status
        if code != 128 + number:
            failures.append(f"{about}: exit code {code}")
        if in_training:
            before, after = happened.split("!", 1)
            # An epoch's own save may still have to be made.
            saves = re.sub("es", "e", before[-1:] + after).count("s")
            most["steps"] = max(most["steps"], after.count("b"))
            most["saves"] = max(most["saves"], saves)
            if after.count("b") > 1 or saves > 1:
                failures.append(f"{about}: more than a step or a save")
        status, _ = start(out)
        found = _result(out) if status == 0 else f"exit code {status}"
        if found != wanted:
            failures.append(f"{about}: gone on with it ends in {found}, not {wanted}")
        shutil.rmtree(out, ignore_errors=True)
    return {
        "signals": done, "signals_beside_it": noted["beside it"],
        "most_steps_begun_after": most["steps"],
        "most_saves_after": most["saves"], "failures": failures,
    }  # fmt: skip
