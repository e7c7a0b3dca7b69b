import contextlib
import io
import subprocess
import sys
import threading
import types

import pytest
from small_benchmarks import CPU, Tiny

from benchmarks import accuracy, baseline, input, references, scaling, step, training


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CustomResNet", Tiny)
        patch.setattr(baseline, "CustomResNet", Tiny)
        patch.setattr(baseline, "Process", threading.Thread)
        yield


@pytest.fixture(scope="module")
def in_process(small):
    """Commands that a benchmark starts run here, on the small network."""
    mains = {"scaling.py": scaling.main, "accuracy.py": accuracy.main}

    def run(command, **options):
        if command[0] != sys.executable:
            return subprocess.run(command, **options)
        with contextlib.redirect_stdout(io.StringIO()) as text:
            mains[command[1].rsplit("/", 1)[1]](command[2:])
        return types.SimpleNamespace(returncode=0, stdout=text.getvalue(), stderr="")

    fake = types.SimpleNamespace(**{**vars(subprocess), "run": run})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "subprocess", fake)
        patch.setattr(references, "subprocess", fake)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory, in_process):
    """Every CPU benchmark at toy size."""
    folder = tmp_path_factory.mktemp("results")
    out = lambda name: ["--out", str(folder / f"{name}.json"), *CPU]
    input.main(
        ["--images", "40", "--batch-size", "8", "--rounds", "2", "--seconds", "0.01",
         "--workers", "0", *out("input")]
    )  # fmt: skip
    step.main(
        ["--images", "48", "--batch-size", "16", "--rounds", "2", "--product", "16", "--profile",
         *out("step")]
    )  # fmt: skip
    baseline.main(["--images", "48", "--batch-size", "16", "--rounds", "2", *out("baseline")])
    scaling.main(
        ["--images", "64", "96", "--batch-size", "8", "16", "--epochs", "1", "2", "--rounds", "1",
         *out("scaling")]
    )  # fmt: skip
    return folder
