import importlib.util
import json
import os
from pathlib import Path

import pytest
import small_runs
import torch

ROOT = Path(__file__).resolve().parent.parent


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def faults():
    """The long test at a small size; command lines and processes have tests of their own."""
    threads, module = torch.get_num_threads(), script("faults")
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["kills", "signals", "mutations", "not_finite"])
def test_a_few_of_each_fault_do_no_harm(faults, tmp_path, name):
    found = faults.SECTIONS[name](0.005, tmp_path)
    assert found["failures"] == []
    counted = {"kills": "random_kills", "not_finite": "cases"}.get(name, name)
    assert found[counted] >= 2


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")
def test_epochs_leak_nothing_and_open_no_socket(faults, tmp_path):
    from fault_trials import footprint  # the script has put its folder on the path

    left = tmp_path / "left.json"

    def child():
        left.write_text(json.dumps(footprint._epochs(5, tmp_path)))

    assert small_runs.in_child(child) == 0
    found = json.loads(left.read_text())
    assert found["sockets"] == []
    for name in ("descriptors", "children", "figures", "tensors"):
        assert len({each[name] for each in found["seen"][2:]}) == 1, name


def test_what_goes_wrong_is_counted_and_the_other_sections_stay(faults, tmp_path, monkeypatch):
    out = tmp_path / "faults.json"

    def broken(share, folder):
        raise OSError("no room")

    sections = {
        "one": lambda share, folder: {"numbers": 3, "failures": []},
        "two": broken,
        "three": lambda share, folder: {"numbers": 4, "failures": ["lost"]},
    }
    for section in sections.values():
        section.__doc__ = "What it does."
    monkeypatch.setattr(faults, "SECTIONS", sections)
    assert faults.main(["--only", "one", "--out", str(out)]) == 0
    assert faults.main(["--only", "two", "three", "--out", str(out)]) == 1
    found = json.loads(out.read_text("utf-8"))["sections"]
    assert [len(found[name]["failures"]) for name in sections] == [0, 1, 1]
    assert "no room" in found["two"]["failures"][0]


def test_without_its_protection_a_checkpoint_fails_the_mutations(faults, tmp_path, monkeypatch):
    class Same:
        digest_size = 32

        def __init__(self, content=b""):
            pass

        def digest(self):
            return bytes(32)

    monkeypatch.setattr("checkpoint.file.hashlib.sha256", Same)
    monkeypatch.setattr(small_runs, "digest", lambda parts: "")
    assert faults.SECTIONS["mutations"](0.004, tmp_path)["failures"]


def test_readme_tells_what_was_counted(tmp_path):
    publish, file = script("publish"), tmp_path / "faults.json"
    assert "make faults" in publish.render_faults(file)
    sections = {
        "kills": {
            "random_kills": 200, "kills_inside_a_save": {"mid-write": 6, "between": 5},
            "runs": 100, "failures": [], "seconds": 9.0,
        },
        "signals": {"failures": ["stopped by a bug"], "seconds": 1.0},
    }  # fmt: skip
    machine = {"device_name": "a processor", "versions": {"torch": "2.15"}}
    results = {"seconds": 120, "machine": machine, "sections": sections}
    file.write_text(json.dumps(results), "utf-8")
    text = publish.render_faults(file)
    assert "200 SIGKILLs" in text and "and 11 at five points" in text and "2 minutes" in text
    assert "| signals | **failures: 1**, first stopped by a bug |" in text
    assert "| mutations | **failures: 1**, first it was not run |" in text and "bit for bit" in text
