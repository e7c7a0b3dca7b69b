"""Our part of the comparison with other libraries, with few kills."""

import json
import shutil
import sys

import pytest

from benchmarks import reliability, render


@pytest.mark.faults
@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler"
)
def test_killed_trainings_of_ours_end_as_one_that_nothing_disturbed(tmp_path):
    file = tmp_path / "reliability.json"
    words = ["--only", "ours", "--kills", "1", "--disk-kills", "1", "--no-faults"]
    reliability.main([*words, "--out", str(file)])
    result = json.loads(file.read_text("utf-8"))
    for kills in ("kills", "disk_kills"):
        row = result["summary"]["ours"][kills]
        assert (row["kills"], row["by_hand"], row["same_weights"]) == (1, 0, 1)
    assert [run["first"]["exit"] for run in result["runs"]] == [-9, -9]
    assert "| ours (onecycle " in render.render_one("reliability", file.parent)
