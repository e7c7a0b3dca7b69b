"""Tests of the ordinary run, with more cases or counted."""

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.parametrize(
    "trials", [pytest.param("full", marks=pytest.mark.faults)], indirect=True
)


def passed(config, *arguments, **variables):
    """How many tests passed, and what failed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=config.rootpath, env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True, text=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    count = re.search(r"(\d+) passed", said)
    failures = re.findall(r"^(?:FAILED|ERROR) .*", said, re.MULTILINE)
    if done.returncode and not failures:
        failures = [said[-1000:]]
    return int(count[1]) if count else 0, failures


def test_command_lines(trials, pytestconfig):
    """Random command lines."""
    total = trials.scaled(500, least=60)  # fewer do not often enough come to the data
    name = "tests/commands/test_command_line.py::test_random_command_lines_never_end_in_a_traceback"
    count, failures = passed(pytestconfig, name, COMMAND_LINES=str(total))
    trials.failures += failures
    trials.record(command_lines=total if count else 0)


def test_evaluation(trials, pytestconfig):
    """Shares of processes, and two real ones against one."""
    names = "shares_of or gradient_of or training_of or processes_end or every_image"
    count, failures = passed(pytestconfig, "tests/training/test_group.py", "-k", names)
    trials.failures += failures
    trials.record(processes=[1, 8], images=[0, 50], gradient_tolerance=1e-12, tests=count)
