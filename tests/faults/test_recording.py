"""What the suites found is written and told."""

import json
import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
HERE = Path(__file__).resolve().parent
SUITES = ("kills", "signals", "mutations", "command_lines", "not_finite", "evaluation", "footprint")


@pytest.fixture
def suites(pytester):
    """Run suites with the recorder that the real ones have; what they wrote below a folder."""
    pytester.makeconftest((HERE / "conftest.py").read_text("utf-8"))

    def run(source, *options, out="results/faults"):
        pytester.makepyfile(source)
        pytester.runpytest_inprocess("-m", "faults", "-p", "no:cacheprovider", *options)
        file = pytester.path / out / "faults.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else None

    return run


def test_all_suites_at_full_size_write_the_file_in_its_order(suites):
    source = [f"def test_{name}(trials): trials.record(done=trials.scaled(40))" for name in SUITES]
    found = suites("\n".join(reversed(source)))
    assert list(found) == ["seed", "share", "machine", "sections", "seconds"]
    assert tuple(found["sections"]) == SUITES
    assert all(
        suite["done"] == 40 and not suite["failures"] for suite in found["sections"].values()
    )
    assert found["machine"]["device"] == "cpu" and found["machine"]["threads"] == 1
    assert suites("\n".join(source), "--faults-scale", "0.5", out="results") is None


def test_what_goes_wrong_is_counted_and_fails_the_test(suites, pytester):
    source = """
        def test_kills(trials): trials.record(runs=3)
        def test_signals(trials): raise OSError("no room")
        def test_mutations(trials): trials.record(runs=4); trials.failures.append("lost")
    """
    assert suites(source) is None  # not all of them
    found = suites(source, "--faults-out", "here", out="here")["sections"]
    assert [len(found[name]["failures"]) for name in SUITES[:3]] == [0, 1, 1]
    assert "no room" in found["signals"]["failures"][0] and found["mutations"]["runs"] == 4
    result = pytester.runpytest_inprocess("-m", "faults", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=2, deselected=3)


def test_the_real_suites_are_all_there():
    names = re.findall(
        r"^def test_(\w+)\(trials, ", "".join(f.read_text() for f in HERE.glob("test_*.py")), re.M
    )
    assert set(SUITES) <= set(names)
