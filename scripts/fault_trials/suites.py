"""Tests of the suite, with more cases."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from .common import ROOT, scaled


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


def evaluation(share: float, folder: Path) -> dict[str, Any]:
    """Shares of processes, and two real ones against one."""
    names = "shares_of or gradient_of or training_of or processes_end or every_image"
    passed, failures = _pytest("tests/test_distributed.py", "-k", names)
    return {
        "processes": [1, 8], "images": [0, 50], "gradient_tolerance": 1e-12, "tests": passed,
        "failures": failures,
    }  # fmt: skip
