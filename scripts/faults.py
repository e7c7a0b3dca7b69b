#!/usr/bin/env python3
"""Kill, stop, spoil and fool small trainings many times, and count what comes of it.

It writes results/faults/faults.json, in under 15 minutes on two cores. Children are forked from
this process, which has one thread, so that none of them waits for torch to be imported. It ends
with 1 where anything was not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported
    os.environ.setdefault(name, "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import small_runs
import torch
from torch import nn

import checkpoint.run
import train
import training_run
import visualize
from checkpoint import LAST, PREVIOUS
from errors import CheckpointError, DivergedError
from hardware import describe_machine
from interrupts import Signals
from loaders import ResidentLoader
from models import CustomResNet
from optimizer import get_optimizer
from training_log import TrainingLog

OUT = ROOT / "results" / "faults" / "faults.json"
CPU = torch.device("cpu")
SEED = 0
IMAGES_PER_S = 128
"""A stated speed of training, to say what share of an epoch of 50,000 images a save takes."""


def say(line: str) -> None:
    print(line, flush=True)


def scaled(full: int, share: float, least: int = 1) -> int:
    return max(least, round(full * share))


class Progress:
    """A line at each quarter of the way."""

    def __init__(self, total: int) -> None:
        self.total, self.next = total, 1

    def at(self, done: int) -> None:
        if 4 * done >= self.next * self.total:
            self.next = 4 * done // self.total + 1
            say(f"  {min(done, self.total):,} of {self.total:,}")


# --- killed and stopped -------------------------------------------------------------------------


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
    training_run.explain_errors = lambda *args: None
    training_run.build_report = lambda *args, **options: ""
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


# --- files and command lines --------------------------------------------------------------------


def _hostile(marker: Path, draw: random.Random, state: dict[str, Any]) -> bytes:
    """A file with the right digest that runs something when it is unpickled."""
    evil, place = small_runs.Evil(marker, draw.randrange(4)), draw.randrange(4)
    if place == 0:
        state["notes"]["x"] = evil
    elif place == 1:
        state["parts"]["model"][draw.choice(list(state["parts"]["model"]))] = evil
    elif place == 2:
        state["parts"]["history"]["losses"].append(evil)
    content = evil if place == 3 else state
    if draw.random() < 0.5:
        return small_runs.sealed(small_runs.pickled(content, draw.randrange(6)))
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=draw.random() < 0.7)
    return small_runs.sealed(stream.getvalue())


def _unfit(draw: random.Random, state: dict[str, Any]) -> bytes:
    """A file with the right digest and form whose tensors do not fit or are not finite."""
    name = draw.choice(["model", "optimizer"])
    tree = state["parts"]["model"] if name == "model" else state["parts"]["optimizer"]["state"][0]
    key = draw.choice([k for k, v in tree.items() if v.is_floating_point() and v.ndim])
    value = tree[key]
    changes = [
        torch.full_like(value, draw.choice([math.nan, math.inf, -math.inf])),
        torch.cat([value, value]),
        value.double(),
        value[None],
    ]
    tree[key] = draw.choice(changes)
    if name == "model" and draw.random() < 0.3:
        tree[f"more {draw.random()}"] = tree.pop(key)
    return small_runs.sealed(state)


def mutations(share: float, folder: Path) -> dict[str, Any]:
    """Damaged, foreign, hostile and unfit files in place of the last checkpoint."""
    draw, failures, kinds = random.Random(SEED), [], Counter()
    run, marker = folder / "run", folder / "executed"
    small_runs.train(small_runs.make(), run, stop=small_runs.stop_after(3))
    whole = (run / LAST).read_bytes()
    strangers = list(small_runs.foreign().values())
    parts, total = small_runs.loop_parts(seed=9), scaled(10_000, share, 40)
    before, progress = small_runs.digest(parts), Progress(total)
    makers: dict[str, tuple[int, Callable[[], bytes]]] = {
        "damaged": (70, lambda: small_runs.damage(whole, draw)),
        "foreign": (
            10,
            lambda: draw.choice([*strangers, draw.randbytes(draw.randrange(len(whole)))]),
        ),
        "hostile": (10, lambda: _hostile(marker, draw, small_runs.opened(whole))),
        "unfit": (10, lambda: _unfit(draw, small_runs.opened(whole))),
    }
    fallbacks = 0
    for done in range(total):
        (kind,) = draw.choices(list(makers), [weight for weight, _ in makers.values()])
        content = makers[kind][1]()
        if content == whole:
            continue
        kinds[kind] += 1
        (run / LAST).write_bytes(content)
        loaded = small_runs.new(run, extra={"log": small_runs.Lines()})
        try:
            if loaded.load(run / LAST):
                loaded.restore(parts)
                failures.append(f"mutation {done} ({kind}) was loaded")
        except CheckpointError:
            pass
        except BaseException as error:  # noqa: BLE001
            failures.append(f"mutation {done} ({kind}): {error!r}")
        if marker.exists():
            failures.append(f"mutation {done} ({kind}) was executed")
            shutil.rmtree(marker, ignore_errors=True)
        if kind != "unfit":  # that is found when the network is there, not by reading the file
            back = small_runs.new(run)
            if back.load() and back.source == run / PREVIOUS and len(back.warnings) == 1:
                fallbacks += 1
            else:
                failures.append(f"mutation {done} ({kind}): no fall-back")
        if done % 100 == 0 and small_runs.digest(parts) != before:
            failures.append(f"mutation {done} ({kind}): the network was touched")
        progress.at(done + 1)
    if small_runs.digest(parts) != before:
        failures.append("the network was touched")
    return {
        "mutations": kinds.total(), "kinds": dict(kinds), "fallbacks": fallbacks,
        "bytes_of_the_file": len(whole), "failures": failures,
    }  # fmt: skip


def _pytest(*arguments: str, **variables: str) -> tuple[int, list[str]]:
    """How many tests passed, and what failed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", said)
    failures = re.findall(r"^(?:FAILED|ERROR) .*", said, re.MULTILINE)
    if done.returncode and not failures:
        failures = [said[-1000:]]
    return int(passed[1]) if passed else 0, failures


def command_lines(share: float, folder: Path) -> dict[str, Any]:
    """Random command lines."""
    total = scaled(500, share, 60)  # fewer do not often enough come to the data
    name = "tests/test_command_line.py::test_random_command_lines_never_end_in_a_traceback"
    passed, failures = _pytest(name, COMMAND_LINES=str(total))
    return {"command_lines": total if passed else 0, "failures": failures}


# --- not finite ---------------------------------------------------------------------------------

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


# --- several processes --------------------------------------------------------------------------


def evaluation(share: float, folder: Path) -> dict[str, Any]:
    """Shares of processes, and two real ones against one."""
    names = "shares_of or gradient_of or training_of or processes_end or every_image"
    passed, failures = _pytest("tests/test_distributed.py", "-k", names)
    return {
        "processes": [1, 8], "images": [0, 50], "gradient_tolerance": 1e-12, "tests": passed,
        "failures": failures,
    }  # fmt: skip


# --- footprint ----------------------------------------------------------------------------------

OFFLINE_IMPORT = """
import sys
opened = []
sys.addaudithook(lambda name, args: opened.append(name) if name.startswith("socket.") else None)
import train, training_run, evaluate, predict, visualize, error_figures
import transformation
transformation.get_train_aug_transform((0.5,) * 3, (0.3,) * 3)
print(sorted(set(opened)))
"""


def _resources() -> dict[str, int]:
    gc.collect()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    memory = Path("/proc/self/statm").read_text().split()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old names that isinstance looks at
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(children),
        "figures": len(plt.get_fignums()),
        "tensors": tensors,
        "memory_bytes": int(memory) * os.sysconf("SC_PAGE_SIZE"),
    }


def _epochs(number: int, folder: Path) -> dict[str, Any]:
    """A training with evaluation, saves and figures in each epoch, and what it holds then."""
    opened, seen = [], []
    sys.addaudithook(lambda name, args: opened.append(name) if name.startswith("socket.") else None)
    small_runs.EPOCHS = number
    parts = small_runs.make()
    loader = small_runs.Batches()
    classes = ("one", "other")
    rng = np.random.default_rng(0)

    def on_epoch(record) -> None:
        labels, predicted = rng.integers(0, 2, 40), rng.integers(0, 2, 40)
        records.append(record)
        for figure in (
            visualize.plot_history(records[-3:], source="noise"),
            visualize.plot_confusion_matrix(labels, predicted, source="noise", classes=classes),
        ):
            figure.savefig(io.BytesIO(), format="png")
        del figure
        seen.append(_resources())

    records: list = []
    saved = small_runs.new(folder / "run", every_s=0.0)
    small_runs.fit(
        parts["model"], loader, loader.to_evaluate, parts["optimizer"], parts["scheduler"],
        nn.CrossEntropyLoss(), epochs=number, precision="bfloat16", checkpoint=saved,
        on_epoch=on_epoch,
    )  # fmt: skip
    return {"seen": seen, "sockets": sorted(set(opened))}


def _save_milliseconds(folder: Path, times: int) -> tuple[float, float]:
    """The median of some saves of the real network with Adam's state, and the file's megabytes."""
    model = CustomResNet()
    optimizer = get_optimizer(model, lr=0.001, weight_decay=0.1, betas=(0.9, 0.99))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    saved, took = small_runs.new(folder / "real"), []
    for _ in range(times + 1):
        begun = time.perf_counter()
        saved.save({"model": model, "optimizer": optimizer}, now=True)
        took.append(1000 * (time.perf_counter() - begun))
    return statistics.median(took[1:]), (folder / "real" / LAST).stat().st_size / 1e6


def footprint(share: float, folder: Path) -> dict[str, Any]:
    """Twenty epochs in one process, sockets, and what a save costs at the real size."""
    failures, number, left = [], scaled(20, share, 6), folder / "left.json"
    status = small_runs.in_child(
        lambda: left.write_text(json.dumps(_epochs(number, folder))) and None
    )
    if status:
        raise RuntimeError(f"the training ended with {status}")
    found = json.loads(left.read_text())
    seen = found["seen"]
    for name in ("descriptors", "children", "figures", "tensors"):
        values = [each[name] for each in seen[2:]]
        if len(set(values)) > 1:
            failures.append(f"{name} after the third epoch: {values}")
    memory = [each["memory_bytes"] / 1e6 for each in seen[2:]]
    growth = statistics.linear_regression(range(len(memory)), memory).slope
    if growth >= 0.2 and number >= 20:  # fewer epochs are still filling caches
        failures.append(f"memory grows by {growth:.3f} MB an epoch: {memory}")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE_IMPORT], cwd=ROOT, capture_output=True, text=True
    )
    imported = done.stdout.strip() or done.stderr[-500:]
    if imported != "[]":
        failures.append(f"importing opened sockets: {imported}")
    if found["sockets"]:
        failures.append(f"training, evaluation or figures opened sockets: {found['sockets']}")
    milliseconds, megabytes = _save_milliseconds(folder, scaled(9, share, 3))
    of_epoch = milliseconds / 1000 / (50_000 / IMAGES_PER_S)
    if of_epoch > 0.01:
        failures.append(f"a save takes {of_epoch:.2%} of an epoch")
    return {
        "epochs": number, "after_the_third": seen[2], "at_the_end": seen[-1],
        "memory_growth_mb_an_epoch": round(growth, 4), "save_ms": round(milliseconds, 1),
        "save_mb": round(megabytes, 1), "stated_images_per_s": IMAGES_PER_S,
        "save_share_of_an_epoch": round(of_epoch, 6), "failures": failures,
    }  # fmt: skip


# --- all of it ----------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[float, Path], dict[str, Any]]] = {
    section.__name__: section
    for section in (kills, signals, mutations, command_lines, not_finite, evaluation, footprint)
}


def run_section(name: str, share: float) -> dict[str, Any]:
    """What a section found; what stops it is one of its failures."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of strange pickles
        try:
            found = SECTIONS[name](share, Path(folder))
        except Exception as error:  # noqa: BLE001 - the other sections are to go on
            found = {"failures": [f"stopped by {error!r}"]}
    return found | {"seconds": round(time.perf_counter() - begun, 1)}


def main(argv: list[str] | None = None) -> int:
    """Run the sections, write the file, print a table; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--share", type=float, default=1.0, help="of the full numbers, 0..1")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help=f"({OUT.name})")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = {"seed": SEED, "share": args.share, "machine": describe_machine(CPU, "bfloat16")}
    results["sections"] = {}
    with contextlib.suppress(OSError, ValueError, KeyError):  # sections that are not asked for stay
        before = json.loads(args.out.read_text("utf-8"))
        if {k: before[k] for k in ("seed", "share", "machine")} == json.loads(
            json.dumps({k: results[k] for k in ("seed", "share", "machine")})
        ):
            results["sections"] = before["sections"]
    for name in args.only:
        say(f"{name}: {SECTIONS[name].__doc__.splitlines()[0]}")
        found = run_section(name, args.share)
        results["sections"][name] = found
        for failure in found["failures"]:
            say(f"  FAILED {failure}")
        say(f"  {len(found['failures'])} failures, {found['seconds']:.0f} s")
        results["seconds"] = sum(each["seconds"] for each in results["sections"].values())
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    say("")
    for name, found in results["sections"].items():
        shown = {k: v for k, v in found.items() if isinstance(v, (int, float)) and k != "seconds"}
        numbers = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in shown.items())
        say(f"{name:14} {len(found['failures']):3} failures {found['seconds']:6.1f} s  {numbers}")
    return int(any(results["sections"][name]["failures"] for name in args.only))


if __name__ == "__main__":
    sys.exit(main())
