"""Trainings that are killed."""

import random
import re
import shutil
import signal
import time
from collections import Counter

import small_runs

from onecycle.training.checkpoint import LAST, PREVIOUS


def resume(run, every_s, left=None):
    """Train to the end; what it ends in goes to the file ``left``."""
    parts = small_runs.make()
    small_runs.train(parts, run, every_s=every_s, evaluate=True)
    if left is not None:
        left.write_text(small_runs.digest(parts))


def end_of(run, every_s):
    """What a run ends in that a process of its own resumes."""
    left = run.with_name("digest")
    left.unlink(missing_ok=True)
    status = small_runs.in_child(lambda: resume(run, every_s, left))
    return left.read_text() if status == 0 and left.exists() else f"exit status {status}"


def die_at(point, number, run):
    small_runs.kill_at(point, number)
    resume(run, 0.0)


def test_kills(trials, tmp_path):
    """SIGKILL at random moments, and at the named points inside a save."""
    draw, run = random.Random(0), tmp_path / "killed"
    wanted = end_of(tmp_path / "never stopped", 0.0)
    assert re.fullmatch("[0-9a-f]{64}", wanted), wanted
    begun = time.perf_counter()
    small_runs.in_child(lambda: resume(tmp_path / "timed", 0.0))
    whole_s = time.perf_counter() - begun

    def finish(every_s, about):
        found = end_of(run, every_s)
        if found != wanted:
            trials.failures.append(f"{about}: {found}, not {wanted}")
        left = {file.name for file in run.iterdir()} - {LAST, PREVIOUS}
        if left:
            trials.failures.append(f"{about}: left {sorted(left)}")
        shutil.rmtree(run)

    total, runs, at_random = trials.scaled(200, least=3), 0, 0
    while at_random < total:
        every_s, moments = draw.choice([0.0, 0.01, 600.0]), []
        for _ in range(min(draw.randint(1, 3), total - at_random)):
            moments.append(draw.uniform(0, whole_s))
            run.mkdir(exist_ok=True)
            status = small_runs.in_child(lambda: resume(run, every_s), after_s=moments[-1])  # noqa: B023
            if status not in (0, -signal.SIGKILL):
                trials.failures.append(f"run {runs}: a child ended with {status}")
            at_random += status == -signal.SIGKILL
            if status == 0:  # it was faster than the signal
                break
        runs += 1
        finish(every_s, f"run {runs}, killed after {[round(s, 3) for s in moments]} s")

    inside = Counter()
    for point in small_runs.POINTS:
        for _ in range(trials.scaled(3)):
            for _ in range(draw.randint(1, 3)):
                number = draw.randint(2, 3)  # of the saves of this process
                status = small_runs.in_child(lambda: die_at(point, number, run))  # noqa: B023
                if status != -signal.SIGKILL:
                    trials.failures.append(f"{point} of save {number}: ended with {status}")
                inside[point] += status == -signal.SIGKILL
            runs += 1
            finish(0.0, f"run {runs}, killed at {point}")
    trials.record(
        random_kills=at_random, kills_inside_a_save=dict(inside), runs=runs,
        steps_a_run=small_runs.EPOCHS * small_runs.STEPS,
    )  # fmt: skip
