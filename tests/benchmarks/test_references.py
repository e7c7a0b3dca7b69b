import shlex
import sys

import pytest
from small_benchmarks import CPU, stored

from benchmarks import references
from onecycle.recipe import PRESETS, Recipe


def test_references_run_beside_ours_and_are_scored_by_one_evaluator(
    tmp_path, in_process, monkeypatch
):
    monkeypatch.setitem(PRESETS, "assignment", Recipe(epochs=1, batch_size=450, lr_max=0.01))
    for name, text in {
        "good": f"""exec {shlex.quote(sys.executable)} -c '
import json, os, numpy as np
labels = np.load(os.environ["IMAGES"])["test_labels"]
np.save(os.environ["OUT"] + "/probabilities.npy", np.eye(10)[labels])
print("noise"); print(json.dumps({{"accuracy": 0.1, "training_seconds": 3}}))'""",
        "bad": "echo broken >&2; exit 3",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.sh").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name / "run.sh").chmod(0o755)
    file = tmp_path / "references.json"
    references.main(
        ["--references", str(tmp_path), "--data-dir", "digits", "--seeds", "0", *CPU,
         "--preset", "assignment", "--epochs", "1", "2", "--out", str(file)]
    )  # fmt: skip
    by_name = {run["name"]: run for run in stored(file)["runs"]}
    ours = [f"{references.OURS}, {epochs} epochs" for epochs in (1, 2)]
    assert list(by_name) == [*ours, "bad", "good"]
    assert by_name["good"]["accuracy"] == 1.0 and by_name["good"]["accuracy_reported"] == 0.1
    assert all(by_name[name]["training_seconds"] > 0 for name in ours)
    assert by_name["bad"]["failed"] == "ended with 3: broken"


@pytest.mark.parametrize(
    ("accuracy", "views", "told"),
    [
        (0.92, 1, "1.67"),  # half the way from 4 s to 8 s: the drop at 5 s does not count
        (0.94, 1, "1.25"),  # as good as the most epochs
        (0.85, 1, "3.33 or more"),  # ours is better with the fewest epochs already
        (0.95, 1, "not reached"),
        (0.95, 2, "1.25"),  # by two views
    ],
)
def test_a_reference_is_compared_at_its_own_accuracy(accuracy, views, told):
    ours = [
        {"name": f"{references.OURS}, {epochs} epochs", "accuracy": reached,
         "accuracy_mirrored": reached + 0.01, "training_seconds": float(epochs)}
        for epochs, reached in ((8, 0.94), (3, 0.93), (4, 0.90))
    ]  # fmt: skip
    reference = {"name": "it", "accuracy": accuracy, "views": views, "training_seconds": 10.0}
    summary = references.summarise([*ours, reference])
    assert summary["it"]["against_ours"]["said"] == told
    assert "against_ours" not in summary[ours[0]["name"]]
