import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "S10_Assignment.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_only_calls_the_modules(committed):
    for cell in code(committed):
        assert not re.search(r"^\s*(def|class|for|while) ", cell.source, re.MULTILINE)
        assert len(cell.source.splitlines()) <= 32


def test_it_was_run_from_top_to_bottom_without_an_error(committed):
    assert [cell.execution_count for cell in code(committed)] == list(
        range(1, len(code(committed)) + 1)
    )
    outputs = [output for cell in code(committed) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 10


def test_a_repository_page_can_show_it(committed):
    assert NOTEBOOK.stat().st_size < 2_000_000
    assert "widgets" not in committed.metadata
    assert "application/vnd.jupyter.widget-view+json" not in NOTEBOOK.read_text("utf-8")


def test_badge_and_package_name_the_same_repository(committed):
    text = "\n".join(cell.source for cell in committed.cells)
    (package,) = re.findall(r'REPOSITORY = "https://github\.com/(.+?)"', text)
    (badge,) = re.findall(r"colab\.research\.google\.com/github/(.+?)/blob/", text)
    readme = re.findall(
        r"colab\.research\.google\.com/github/(.+?)/blob/", (ROOT / "README.md").read_text("utf-8")
    )
    assert {package} == {badge} == set(readme)


STOPPED = """
write = TrainingLog.on_epoch

def write_and_stop(self, record):
    write(self, record)
    raise KeyboardInterrupt

TrainingLog.on_epoch = write_and_stop
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook run small, in a checkout whose files were moved into another folder.

    It is interrupted after the first epoch, and run once more in a new kernel.
    """
    folder = tmp_path_factory.mktemp("it's a notebook")
    for path in [NOTEBOOK, *ROOT.glob("*.py")]:
        shutil.copy(path, folder)
    for package in ("checkpoint", "models", "report"):
        shutil.copytree(ROOT / package, folder / package)
    settings = {
        "DATASET": "digits", "EPOCHS": "2", "BATCH_SIZE": "16", "FINDER_STEPS": "30",
        "LIMIT_TRAIN": "160", "LIMIT_TEST": "60", "OUT": "run",
    }  # fmt: skip
    stopped = nbformat.read(NOTEBOOK, as_version=4)
    place = next(i for i, c in enumerate(stopped.cells) if "import TrainingLog" in c.source)
    stopped.cells.insert(place + 1, nbformat.v4.new_code_cell(STOPPED))
    nbformat.write(stopped, folder / "stopped.ipynb")
    whole = nbformat.read(NOTEBOOK, as_version=4)
    (training,) = (cell.source for cell in code(whole) if "history = fit(" in cell.source)
    again = f"try:\n{textwrap.indent(training, '    ')}\nexcept OSError as error:\n    print(error)"
    whole.cells.append(nbformat.v4.new_code_cell(again))
    nbformat.write(whole, folder / NOTEBOOK.name)
    for name in ("stopped.ipynb", NOTEBOOK.name):
        subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "run_notebook.py"), str(folder / name)],
            env={**os.environ, **settings},
            check=True,
        )
    return folder


def test_it_runs_small_and_shows_every_figure(executed):
    notebook = nbformat.read(executed / NOTEBOOK.name, as_version=4)
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 10
    text = "".join(output.get("text", "") for output in outputs)
    assert "Total params: 6,575,370" in text
    assert text.count("EPOCH = 1 | LR = ") == text.count("EPOCH = 2 | LR = ") == 1
    assert "run holds a finished run already" in text  # the training cell, run once more
    assert text.count("Test set: Average loss: ") == 2 and text.count("LRMAX = ") == 1


def test_it_says_where_it_was_stopped(executed):
    notebook = nbformat.read(executed / "stopped.ipynb", as_version=4)
    text = "".join(output.get("text", "") for c in code(notebook) for output in c.outputs)
    assert "EPOCH = 1 | LR = " in text and "EPOCH = 2" not in text
    assert "It was stopped: run the training cell again" in text


def test_it_writes_the_run(executed):
    results = json.loads((executed / "run" / "results.json").read_text("utf-8"))
    assert results["data"]["source"] == "digits"
    assert results["recipe"]["epochs"] == len(results["history"]) == 2
    assert len(list((executed / "run" / "figures").glob("*.png"))) == 10
