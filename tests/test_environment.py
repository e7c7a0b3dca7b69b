"""What scripts/check_environment.py finds; the environments themselves take gigabytes."""

import json

import check_environment
import nbformat
import pytest
import run_notebook

BEFORE = {"torch": "torch==2.11.0", "numpy": "numpy==2.1.3"}
ADDED = {"onecycle": "onecycle @ file:///clone", "torch-lr-finder": "torch-lr-finder==0.2.2"}


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = check_environment.versions("oldest")
    assert "albumentations==2.0" in oldest and "safetensors==0.4" in oldest
    assert not [version for version in oldest if "==" not in version or "<" in version]


def test_only_the_project_may_come_and_nothing_may_change():
    check_environment.compare("colab", BEFORE, BEFORE | ADDED)
    others = (
        BEFORE | ADDED | {"numpy": "numpy==2.4.0"},
        ADDED | {"torch": BEFORE["torch"]},
        BEFORE | ADDED | {"pandas": "pandas==3.0.0"},
        BEFORE,
    )
    for after in others:
        with pytest.raises(AssertionError):
            check_environment.compare("colab", BEFORE, after)
    with pytest.raises(AssertionError):
        check_environment.compare("oldest", BEFORE, BEFORE | ADDED)


@pytest.mark.parametrize("missing", [None, "figure", "weights", "error"])
def test_a_notebook_that_did_not_run_whole_is_found(tmp_path, missing):
    outputs = [nbformat.v4.new_output("display_data", {"image/png": ""}) for _ in range(10)]
    if missing == "figure":
        outputs.pop()
    if missing == "error":
        outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]))
    cell = nbformat.v4.new_code_cell("", outputs=outputs)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "executed.ipynb")
    (tmp_path / "run").mkdir()
    if missing != "weights":
        (tmp_path / "run" / "model.safetensors").touch()
    (tmp_path / "run" / "results.json").write_text(json.dumps({"machine": {"versions": {}}}))
    if missing is None:
        check_environment.check_run(tmp_path)
    else:
        with pytest.raises(AssertionError):
            check_environment.check_run(tmp_path)


def test_an_executed_notebook_keeps_no_bar_no_time_and_no_widget(tmp_path):
    source = "print('10%', end='\\r'); print('100%'); open('here', 'w').close()"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["widgets"] = {}
    run_notebook.execute(notebook, tmp_path)
    (cell,) = notebook.cells
    assert [output.text for output in cell.outputs] == ["100%\n"]
    assert "execution" not in cell.metadata and "widgets" not in notebook.metadata
    assert (tmp_path / "here").exists()
