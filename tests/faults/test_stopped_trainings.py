"""Trainings of the real command line that are told to stop."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter

import safetensors.torch  # noqa: F401 (here, so that no child waits for it)
import sklearn.datasets  # noqa: F401
import small_runs
import torchsummary  # noqa: F401
from torch import nn

import models
from onecycle import commands, run, run_folder
from onecycle.commands import images  # noqa: F401
from onecycle.data.loaders import ResidentLoader
from onecycle.results.grad_cam import ErrorMaps
from onecycle.training.checkpoint import run as checkpoint_run
from onecycle.training.progress import TrainingLog
from onecycle.training.signals import STOPPING, Signals

COMMAND = [
    "train", "--dataset", "digits", "--epochs", "4", "--batch-size", "16", "--limit-train", "320",
    "--limit-test", "64", "--lr-max", "0.01", "--device", "cpu",
]  # fmt: skip


class Tiny(nn.Sequential):
    """In place of the real network, so that a whole command line takes a moment."""

    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(3, 4, 4, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, num_classes),
        )  # fmt: skip


def note_before(owner, name, file, letter):
    """Before each call of a function, a letter goes to the file."""
    real = getattr(owner, name)

    def noted(*args, **options):
        os.write(file, letter)
        return real(*args, **options)

    setattr(owner, name, noted)


def command_line(out, events):
    """A training in this process, a letter to ``events`` for all that happens; its exit code.

    m: begins; b: a batch; e: an epoch is done; s: a save begins; !: a signal was noted.
    """
    file = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    note_before(checkpoint_run, "write_state", file, b"s")
    note_before(TrainingLog, "on_epoch", file, b"e")
    note_before(Signals, "_on_signal", file, b"!")
    real = ResidentLoader.__iter__

    def batches(self):
        for batch in real(self):
            if self.batches.train:
                os.write(file, b"b")
            yield batch

    ResidentLoader.__iter__ = batches
    models.CustomResNet = Tiny
    run.FIGURES.clear()
    run.explain_errors = lambda *args: ErrorMaps("", None, None, None)
    run_folder.build_report = lambda *args, **options: ""
    said = os.open(out.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.write(file, b"m")
    code = commands.main([*COMMAND, "--out", str(out)])
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    return code


def start(out, **options):
    """The exit code of the command line in a child, and the letters of what happened."""
    events = out.with_name("events")
    events.unlink(missing_ok=True)
    status = small_runs.in_child(lambda: command_line(out, events), **options)
    return status, events.read_text() if events.exists() else ""


def result_of(out):
    """Weights, steps and history of a finished run, as a digest of all but its seconds."""
    history = json.loads((out / "results.json").read_text("utf-8"))["history"]
    files = [(out / name).read_bytes() for name in ("model.safetensors", "steps.csv")]
    return small_runs.fingerprint([history, *files])


def after_the_signal(happened):
    """The steps and the saves that began after the signal was noted."""
    before, after = happened.split("!", 1)
    # An epoch's own save may still have to be made.
    return after.count("b"), re.sub("es", "e", before[-1:] + after).count("s")


def test_signals(trials, tmp_path):
    """Each signal that asks to stop, at random moments of the real command line."""
    draw, noted, steps, saves = random.Random(0), Counter(), [0], [0]
    status, _ = start(tmp_path / "whole")
    assert status == 0, (tmp_path / "whole.txt").read_text()[-500:]
    wanted, begun = result_of(tmp_path / "whole"), time.perf_counter()
    start(tmp_path / "timed")
    whole_s, total = time.perf_counter() - begun, trials.scaled(50, least=2)
    while (done := noted["in the training"]) < total:
        if noted.total() > 20 * (total + 5):
            trials.failures.append(f"only {done} signals came in the training: {dict(noted)}")
            break
        out = tmp_path / f"run {noted.total()}"
        number = draw.choice(STOPPING)
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
        # Beside the training a signal simply ends it, for which a shell has the same code.
        code = status if in_training or status >= 0 else 128 - status
        if code != 128 + number:
            trials.failures.append(f"{about}: exit code {code}")
        if in_training:
            for most, count in zip((steps, saves), after_the_signal(happened), strict=True):
                most.append(count)
                if count > 1:
                    trials.failures.append(f"{about}: more than a step or a save")
        status, _ = start(out)
        found = result_of(out) if status == 0 else f"exit code {status}"
        if found != wanted:
            trials.failures.append(f"{about}: resumed, it ends in {found}, not {wanted}")
        shutil.rmtree(out, ignore_errors=True)
    trials.record(
        signals=done, signals_beside_it=noted["beside it"], most_steps_begun_after=max(steps),
        most_saves_after=max(saves),
    )  # fmt: skip
