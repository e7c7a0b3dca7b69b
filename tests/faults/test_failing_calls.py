"""Calls of the system that fail one by one, in whole commands."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARE = 0.6
"""Of the calls: all of them take ten minutes on two cores."""
JOBS = [("train", 0, 2), ("train", 1, 2), ("evaluate", 0, 1), ("predict", 0, 1)]
"""Command, and which part of its calls."""


@pytest.fixture
def library(tmp_path):
    """What lets calls fail, for LD_PRELOAD."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    made = tmp_path / "failing_calls.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(made)]
    subprocess.run([compiler, *options, str(HERE / "failing_calls.c"), "-ldl"], check=True)
    return made


def test_calls(trials, tmp_path, library):
    """Each call of train, evaluate and predict fails once, in the ways that it can."""

    def run(job):
        name, part, parts = job
        folder = tmp_path / f"{name} {part}"
        folder.mkdir()
        words = [str(folder), name, str(part), str(parts), str(SHARE * trials.scale)]
        surroundings = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / "failing_calls.py"), *words]
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return name, json.loads(done.stdout.splitlines()[-1])

    jobs = JOBS[-1:] if trials.is_smoke else JOBS
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(run, jobs))
    counts, calls = Counter(), {}
    for name, result in found:
        counts += Counter({key: result[key] for key in ("trials", "ended_well", "refused")})
        calls[name] = result["calls"]
        trials.failures += result["failures"]
    trials.record(**counts, calls=calls)
    assert counts["refused"] or trials.is_smoke
