import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


sys.path.append(str(ROOT / "scripts"))  # by its name, so that its processes find it too
script = importlib.import_module("deliberate_faults")
FAULTS = script.read_list()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file} {fault.select}")
def test_every_fault_is_of_the_code_as_it_is_and_still_python(fault):
    ast.parse(fault.applied(ROOT))  # raises where the text is not there exactly once
    tests = re.findall(r"^def (test_\w+)", (ROOT / fault.test).read_text("utf-8"), re.MULTILINE)
    assert any(fault.select in name for name in tests)


@pytest.mark.parametrize(
    ("text", "test", "verdict"),
    [
        ("two = 2", "assert two == 2", script.RED),
        ("two = 2", "assert two", script.GREEN),
        ("two = 2", "import nothing_of_this_name", script.RED),
        ("two", "assert two == 2", script.LOST),
        ("three", "assert two == 2", script.LOST),
    ],
)
def test_a_verdict_is_true_and_the_copy_is_mended(tmp_path, text, test, verdict):
    (tmp_path / "room.py").write_text("two = 2\ntwo += 0\n")
    (tmp_path / "test_room.py").write_text(
        f"def test_two():\n    from room import two\n    {test}\n"
    )
    fault = script.Fault("row", "room.py", text, "two = 3", "test_room.py", "two")
    assert script.try_fault(fault, tmp_path)[0] == verdict
    assert (tmp_path / "room.py").read_text() == "two = 2\ntwo += 0\n"


def test_a_selection_without_a_test_proves_nothing(tmp_path):
    (tmp_path / "room.py").write_text("two = 2\n")
    (tmp_path / "test_room.py").write_text("def test_two():\n    pass\n")
    fault = script.Fault("row", "room.py", "2", "3", "test_room.py", "three")
    assert script.try_fault(fault, tmp_path)[0] == script.UNDECIDED
