#!/usr/bin/env python3
"""Execute the notebook where nothing but given versions is installed.

    check_environment.py colab [FOLDER]     what Colab has
    check_environment.py oldest [FOLDER]    the lower bounds of requirements.txt

The notebook lies alone in an empty folder, as on Colab, and installs the project itself; its
address is led to a clone of this checkout, so what is tested is the last commit. It fails where
that changes a package that was there before, or where the run is not whole. The environment takes
some 6 GB in a temporary folder; in a FOLDER it stays and is used again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "S10_Assignment.ipynb"
PROJECT = "custom-resnet-cifar10"
TOOLS = ["nbclient", "nbformat", "ipykernel"]  # what executes the notebook
COLAB = [
    "torch==2.11.*", "torchvision==0.26.*", "numpy==2.1.*", "matplotlib==3.10.*",
    "scikit-learn==1.6.*", "albumentations==2.0.8", "torchsummary==1.5.1", "ipython==7.34.*",
    "tqdm", "tensorboard", "pytest",
]  # fmt: skip
SMALL = {
    "DATASET": "digits", "EPOCHS": "1", "BATCH_SIZE": "16", "FINDER_STEPS": "30",
    "LIMIT_TRAIN": "320", "LIMIT_TEST": "60", "OUT": "run",
}  # fmt: skip
NUM_FIGURES = 10


def versions(kind: str) -> list[str]:
    """What is there before the project comes."""
    if kind == "colab":
        return COLAB
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    bounds = [line for line in lines if line and not line.startswith("#")]
    return [bound.split(",")[0].replace(">=", "==") for bound in bounds]


def installed(python: Path) -> dict[str, str]:
    """The lines of ``pip freeze`` by the package's name."""
    lines = run(python, "-m", "pip", "freeze", "--all").splitlines()
    return {re.split("==| @ ", line)[0].lower(): line for line in lines}


def run(*command: str | Path, **options) -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True, **options
    ).stdout


def check(kind: str, folder: Path) -> None:
    clone, empty = Path(tempfile.mkdtemp(dir=folder)), Path(tempfile.mkdtemp(dir=folder))
    run("git", "clone", "--quiet", ROOT, clone)
    (empty / NOTEBOOK).write_bytes((clone / NOTEBOOK).read_bytes())

    python = folder / kind / "bin" / "python"
    started = time.perf_counter()
    if not python.exists():
        run(sys.executable, "-m", "venv", folder / kind)
        run(python, "-m", "pip", "install", "--quiet", *versions(kind), *TOOLS)
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", PROJECT, stderr=subprocess.DEVNULL)
    if kind == "colab":
        run(python, "-m", "pip", "uninstall", "-qy", "torch-lr-finder", stderr=subprocess.DEVNULL)
    before = installed(python)
    print(f"{len(before)} packages installed in {time.perf_counter() - started:.0f} s")

    started = time.perf_counter()
    source = (empty / NOTEBOOK).read_text("utf-8")
    address = re.search(r'REPOSITORY = \\"(https://[^"\\]+)', source)[1]
    led_here = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{clone.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(
        python, clone / "scripts" / "run_notebook.py", empty / NOTEBOOK,
        cwd=empty, env=environment | led_here | SMALL,
    )  # fmt: skip
    print(f"the notebook took {time.perf_counter() - started:.0f} s")

    after = installed(python)
    changed = {name: (line, after.get(name)) for name, line in before.items()}
    changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
    assert not changed, f"the notebook's installation changed {changed}"
    added = set(after) - set(before)
    print(f"it added {', '.join(after[name] for name in sorted(added))}, and changed nothing")
    assert added == {PROJECT} | ({"torch-lr-finder"} if kind == "colab" else set()), added

    notebook = json.loads((empty / NOTEBOOK).read_text("utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    messages = [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert not messages, messages
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert figures == NUM_FIGURES, f"{figures} figures instead of {NUM_FIGURES}"
    results = json.loads((empty / "run" / "results.json").read_text("utf-8"))
    print(f"all figures are there, results.json too: {results['machine']['versions']}")


def main(kind: str, folder: str | None = None) -> None:
    if folder is not None:
        return check(kind, Path(folder).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        check(kind, Path(temporary))


if __name__ == "__main__":
    if not (2 <= len(sys.argv) <= 3 and sys.argv[1] in ("colab", "oldest")):
        sys.exit(__doc__)
    main(*sys.argv[1:])
