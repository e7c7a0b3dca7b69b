"""Suites of trials: what was done, how often, and what came of it, in results/faults/faults.json.

A suite is a test with the fixture ``trials``. It runs at full size with ``make faults``, and as a
smoke of a few trials in the ordinary test run.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import small_runs
import torch

from onecycle.training.compute import Compute

SUITES = (
    "kills", "signals", "calls", "mutations", "edits", "pictures", "command_lines", "not_finite",
    "evaluation", "footprint",
)  # fmt: skip
FOUND = pytest.StashKey[dict]()


@dataclass
class Trials:
    """One suite: a share of the full numbers, what it counted, and what was not as it should be."""

    scale: float
    is_smoke: bool
    counts: dict = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def scaled(self, full: int, least: int = 1) -> int:
        return max(least, round(full * self.scale))

    def record(self, **counts) -> None:
        self.counts |= counts


def pytest_addoption(parser):
    group = parser.getgroup("faults")
    group.addoption("--faults-scale", type=float, default=1.0, help="share of the full numbers")
    group.addoption(
        "--faults-out", type=Path, metavar="DIR",
        help="folder of faults.json, also of a part of the suites or of fewer trials "
        "(results/faults, and only if all suites ran at full size)",
    )  # fmt: skip


@pytest.fixture(params=[pytest.param("full", marks=pytest.mark.faults), "smoke"])
def trials(request):
    """What the suite records its trials with; torch has one thread, as forked children need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small_runs.make()  # with the first optimizer torch imports much, which no child is to wait for
    is_smoke = request.param == "smoke"
    scale = 0.005 if is_smoke else request.config.getoption("--faults-scale")
    yield Trials(scale, is_smoke)
    torch.set_num_threads(threads)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Time a suite and keep what it found; what stops it is one of its failures.

    Of one that was interrupted or skipped nothing is kept: it did not come to its end.
    """
    suite, begun = item.funcargs.get("trials"), time.perf_counter()
    if suite is None:
        return (yield)
    try:
        result = yield
    except (KeyboardInterrupt, pytest.exit.Exception, pytest.skip.Exception):
        raise
    except BaseException as error:  # pytest.fail's and SystemExit are no Exception
        suite.counts, suite.failures = {}, [f"stopped by {error!r}"]
        keep(item, suite, begun)
        raise
    keep(item, suite, begun)
    if suite.failures:
        pytest.fail("\n".join(suite.failures), pytrace=False)
    return result


def keep(item, suite, begun):
    if suite.is_smoke:
        return
    found = suite.counts | {"failures": suite.failures}
    found["seconds"] = round(time.perf_counter() - begun, 1)
    name = item.function.__name__.removeprefix("test_")
    before = item.config.stash.setdefault(FOUND, {}).setdefault(name, {})
    for key, value in found.items():  # a suite of several cases adds them up
        before[key] = before[key] + value if key in before else value


def pytest_terminal_summary(terminalreporter, config):
    """Write the file and print a table of the suites."""
    found, scale = config.stash.get(FOUND, {}), config.getoption("--faults-scale", 1.0)
    for name, suite in found.items():
        shown = {k: v for k, v in suite.items() if isinstance(v, int | float) and k != "seconds"}
        counts = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in shown.items())
        failures, seconds = len(suite["failures"]), suite["seconds"]
        terminalreporter.line(f"{name:14} {failures:3} failures {seconds:6.1f} s  {counts}")
    out = config.getoption("--faults-out", None)
    if out is None and scale == 1 and set(SUITES) <= set(found):
        out = config.rootpath / "results" / "faults"
    if out is None or not found:
        return
    torch.set_num_threads(1)  # as in the suites
    results = {
        "seed": 0, "share": scale, "machine": Compute(torch.device("cpu"), "bfloat16").describe(),
        "sections": {name: found[name] for name in SUITES if name in found},
        "seconds": sum(suite["seconds"] for suite in found.values()),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "faults.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    terminalreporter.line(f"written to {out / 'faults.json'}")
