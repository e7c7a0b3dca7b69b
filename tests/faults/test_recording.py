"""What the suites found is written and told."""

import json
import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
HERE = Path(__file__).resolve().parent
SUITES = (
    "kills", "signals", "calls", "mutations", "edits", "pictures", "command_lines", "not_finite",
    "evaluation", "footprint",
)  # fmt: skip


@pytest.fixture
def suites(pytester):
    """Run suites with the recorder that the real ones have; what they wrote below a folder."""
    pytester.makeconftest((HERE / "conftest.py").read_text("utf-8"))

    def run(source, *options, out="results/faults"):
        pytester.makepyfile(source)
        arguments = ("-m", "faults", "-p", "no:cacheprovider", *options)
        pytester.runpytest_inprocess(*arguments, no_reraise_ctrlc=True)
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
        def test_calls(trials): trials.record(runs=4); trials.failures.append("lost")
    """
    assert suites(source) is None  # not all of them
    found = suites(source, "--faults-out", "here", out="here")["sections"]
    assert [len(found[name]["failures"]) for name in SUITES[:3]] == [0, 1, 1]
    assert "no room" in found["signals"]["failures"][0] and found["calls"]["runs"] == 4
    result = pytester.runpytest_inprocess("-m", "faults", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=2, deselected=3)


def test_a_suite_of_several_cases_adds_them_up(suites):
    source = """
        import pytest
        @pytest.mark.parametrize("case", [1, 20])
        def test_kills(trials, case): trials.record(runs=case); trials.failures.append(str(case))
    """
    found = suites(source, "--faults-out", "here", out="here")["sections"]["kills"]
    assert (found["runs"], found["failures"]) == (21, ["1", "20"])


@pytest.mark.parametrize(
    ("end", "said"),
    [("pytest.fail('it hung')", "it hung"), ("raise SystemExit(3)", "SystemExit(3)")],
)
def test_however_a_suite_fails_it_is_no_success(suites, end, said):
    source = f"import pytest\ndef test_kills(trials): trials.record(runs=3); {end}"
    found = suites(source, "--faults-out", "here", out="here")["sections"]["kills"]
    assert said in found["failures"][0] and "runs" not in found


@pytest.mark.parametrize(
    "end", ["raise KeyboardInterrupt", "pytest.exit('enough')", "pytest.skip()"]
)
def test_a_suite_that_did_not_end_is_not_told_and_leaves_the_file_alone(suites, pytester, end):
    done = [f"def test_{name}(trials): trials.record(done=1)" for name in SUITES[:-1]]
    source = ["import pytest", *done, f"def test_{SUITES[-1]}(trials): {end}"]
    before = pytester.mkdir("results").joinpath("faults", "faults.json")
    before.parent.mkdir()
    before.write_text('"as it was"', "utf-8")
    assert suites("\n".join(source)) == "as it was"
    found = suites("\n".join(source), "--faults-out", "here", out="here")["sections"]
    assert tuple(found) == SUITES[:-1]


def test_the_real_suites_are_all_there():
    names = re.findall(
        r"^def test_(\w+)\(trials, ", "".join(f.read_text() for f in HERE.glob("test_*.py")), re.M
    )
    assert set(SUITES) <= set(names)
