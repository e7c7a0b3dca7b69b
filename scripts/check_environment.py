#!/usr/bin/env python3
"""Install the project where nothing but given versions is, and execute the notebook small.

    check_environment.py colab [FOLDER]     what Colab has
    check_environment.py oldest [FOLDER]    the lower bounds of requirements.txt

What is tested is the last commit: a clone of this one is installed. It fails if that changes a
package that was there before, or if the notebook does not show every figure and write its run. The
environment takes some 6 GB in a temporary folder; in a FOLDER it stays and is used again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "S10_Assignment.ipynb"
PROJECT = "onecycle"
TOOLS = ["nbclient", "nbformat", "ipykernel"]  # what executes the notebook
COLAB = [
    "torch==2.11.*", "torchvision==0.26.*", "numpy==2.1.*", "matplotlib==3.10.*",
    "scikit-learn==1.6.*", "albumentations==2.0.8", "torchsummary==1.5.1", "ipython==7.34.*",
    "safetensors", "tqdm", "tensorboard", "pytest",
]  # fmt: skip
NOT_IN_COLAB = "torch-lr-finder"
NUM_FIGURES = (ROOT / NOTEBOOK).read_text("utf-8").count("run.figure(")
EXECUTE = """
import pathlib, sys
import nbformat, notebooks, run_notebook
notebook = notebooks.small_notebook(sys.argv[1], "run")
run_notebook.execute(notebook, pathlib.Path.cwd())
nbformat.write(notebook, "executed.ipynb")
"""


def versions(kind: str) -> list[str]:
    """What is there before the project comes."""
    if kind == "colab":
        return COLAB
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    bounds = [line for line in lines if line and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    bounds += project["optional-dependencies"]["weights"]
    return [bound.split(",")[0].replace(">=", "==") for bound in bounds]


def run(*command: str | Path, **options) -> str:
    words = [str(word) for word in command]
    return subprocess.run(
        words, check=True, stdout=subprocess.PIPE, encoding="utf-8", **options
    ).stdout


def installed(python: Path) -> dict[str, str]:
    """The lines of ``pip freeze`` by the package's name."""
    lines = run(python, "-m", "pip", "freeze", "--all").splitlines()
    return {re.split("==| @ ", line)[0].lower(): line for line in lines}


def compare(kind: str, before: dict[str, str], after: dict[str, str]) -> None:
    """Check that the project came, and nothing else but what it must bring."""
    changed = [(line, after.get(name)) for name, line in before.items() if after.get(name) != line]
    assert not changed, f"installing the project changed {changed}"
    added = set(after) - set(before)
    assert added == {PROJECT} | ({NOT_IN_COLAB} if kind == "colab" else set()), added


def check_run(folder: Path) -> None:
    """Check what the notebook left in its folder: no error, every figure, a whole run."""
    notebook = json.loads((folder / "executed.ipynb").read_text("utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    messages = [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert not messages, messages
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert figures == NUM_FIGURES, f"{figures} figures instead of {NUM_FIGURES}"
    assert (folder / "run" / "model.safetensors").is_file()
    results = json.loads((folder / "run" / "results.json").read_text("utf-8"))
    print(f"the notebook ran whole with {results['machine']['versions']}")


def check(kind: str, folder: Path) -> None:
    clone, empty = Path(tempfile.mkdtemp(dir=folder)), Path(tempfile.mkdtemp(dir=folder))
    run("git", "clone", "--quiet", ROOT, clone)
    python = folder / kind / "bin" / "python"
    pip = (python, "-m", "pip")
    if not python.exists():
        run(sys.executable, "-m", "venv", folder / kind)
        run(*pip, "install", "--quiet", *versions(kind), *TOOLS)
    ours = [PROJECT] + ([NOT_IN_COLAB] if kind == "colab" else [])
    run(*pip, "uninstall", "--quiet", "--yes", *ours, stderr=subprocess.DEVNULL)
    before = installed(python)
    run(*pip, "install", "--quiet", f"{PROJECT}[weights] @ {clone.as_uri()}")
    compare(kind, before, installed(python))
    places = os.pathsep.join(str(clone / name) for name in ("tests", "scripts"))
    environment = os.environ | {"PYTHONPATH": places}
    run(python, "-c", EXECUTE, clone / NOTEBOOK, cwd=empty, env=environment)
    check_run(empty)


if __name__ == "__main__":
    if not (2 <= len(sys.argv) <= 3 and sys.argv[1] in ("colab", "oldest")):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        check(sys.argv[1], Path(*sys.argv[2:] or [temporary]).resolve())
