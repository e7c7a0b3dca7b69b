import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from notebooks import code_cells, small_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "S10_Assignment.ipynb"
NUM_FIGURES = NOTEBOOK.read_text("utf-8").count("run.figure(")


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_short_and_only_calls_the_library(committed):
    cells = code_cells(committed)
    lines = [line for cell in cells for line in cell.source.splitlines() if line.strip()]
    assert len(cells) <= 20
    assert all(len(cell.source.strip().splitlines()) <= 6 for cell in cells)
    assert sum(line.lstrip().startswith(("import ", "from ")) for line in lines) <= 6
    assert not [line for line in lines if re.match(r"\s*(def|class|for|while) ", line)]


def test_a_sentence_over_each_cell_says_how_long_it_takes(committed):
    kinds = [cell.cell_type for cell in committed.cells]
    assert kinds == ["markdown", *["markdown", "code"] * len(code_cells(committed))]
    time = r"second|minute|hour|nothing|Change them"
    for text, cell in zip(committed.cells[1::2], code_cells(committed), strict=True):
        assert re.search(time, text.source), cell.source


def test_it_was_run_from_top_to_bottom_without_an_error(committed):
    assert [cell.execution_count for cell in code_cells(committed)] == list(
        range(1, len(code_cells(committed)) + 1)
    )
    outputs = [output for cell in code_cells(committed) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == NUM_FIGURES


def test_a_repository_page_can_show_it(committed):
    assert NOTEBOOK.stat().st_size < 2_000_000
    assert "widgets" not in committed.metadata
    assert "application/vnd.jupyter.widget-view+json" not in NOTEBOOK.read_text("utf-8")


def test_badge_and_package_name_the_same_repository(committed):
    text = "\n".join(cell.source for cell in committed.cells)
    (package,) = re.findall(r"git\+https://github\.com/([\w./-]+)", text)
    badge = r"colab\.research\.google\.com/github/(.+?)/blob/"
    readme = re.findall(badge, (ROOT / "README.md").read_text("utf-8"))
    assert {package} == set(re.findall(badge, text)) == set(readme)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook run small: interrupted, run again in a new kernel, and once more when finished."""
    folder = tmp_path_factory.mktemp("it's a notebook")
    executed = []
    for stopped in (True, False, False):
        notebook = small_notebook(NOTEBOOK, folder / "run", stopped=stopped)
        with pytest.MonkeyPatch.context() as patch:
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            patch.setenv("PYTHONPATH", path.rstrip(os.pathsep))
            NotebookClient(
                notebook, resources={"metadata": {"path": str(folder)}}, coalesce_streams=True
            ).execute()
        executed.append(notebook)
    return folder, executed


def outputs_of(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def text_of(notebook):
    return "".join(output.get("text", "") for output in outputs_of(notebook))


def test_it_resumes_and_shows_every_figure(executed):
    _, (stopped, resumed, _) = executed
    assert text_of(stopped).count("EPOCH = 1 | LR = ") == 1
    assert "EPOCH = 2" not in text_of(stopped)
    assert "resuming from" in text_of(resumed)
    # With the lines from before the interruption.
    assert all(f"\nEPOCH = {n} | LR = " in text_of(resumed) for n in (1, 2))
    assert "Total params: 6,575,370" in text_of(resumed)
    assert (
        sum("image/png" in output.get("data", {}) for output in outputs_of(resumed)) == NUM_FIGURES
    )
    assert not [output for output in outputs_of(resumed) if output.get("name") == "stderr"]


def test_a_second_run_all_shows_the_finished_run(executed):
    _, (_, resumed, again) = executed
    assert text_of(again).count("already complete (2 of 2 epochs)") == 2  # and the last cell's
    assert sum("image/png" in output.get("data", {}) for output in outputs_of(again)) == NUM_FIGURES
    said = [re.findall(r"\d+\.\d\d% right; .*", text_of(each)) for each in (resumed, again)]
    assert said[0] == said[1] != []


def test_it_writes_the_run(executed):
    folder, _ = executed
    results = json.loads((folder / "run" / "results.json").read_text("utf-8"))
    assert results["data"]["source"] == "digits"
    assert results["recipe"]["epochs"] == len(results["history"]) == 2
    assert len(list((folder / "run" / "figures").glob("*.png"))) == NUM_FIGURES
