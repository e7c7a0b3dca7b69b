"""The notebook in JupyterLab, as a person runs it: ``make test-browser``.

Screenshots go to the folder that the variable SCREENSHOTS names, where it is set.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from browsing import keep_screenshot, wait_for
from notebooks import code_cells, small_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "S10_Assignment.ipynb"
# Cells out of sight would otherwise not be drawn, and JupyterLab asks about news.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

pytestmark = pytest.mark.browser


@pytest.fixture
def lab(tmp_path):
    """The address of the notebook, without outputs, in a JupyterLab that is nobody's."""
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    notebook = small_notebook(ROOT / NOTEBOOK, "run")
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / NOTEBOOK)
    for name, values in SETTINGS.items():
        file = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values), "utf-8")
    own = {
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }  # fmt: skip
    with open(tmp_path / "server.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0",
             "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}",
             "--IdentityProvider.token="],
            env={**os.environ, "PYTHONPATH": str(ROOT)}
            | {name: str(tmp_path / place) for name, place in own.items()},
            stdout=log,
            stderr=log,
        )  # fmt: skip

    def address():
        assert server.poll() is None, (tmp_path / "server.log").read_text("utf-8")
        for file in (tmp_path / "runtime").glob("jpserver-*.json"):
            try:
                return json.loads(file.read_text("utf-8"))["url"]
            except ValueError:  # half written
                return None

    try:
        yield wait_for(address, "the server") + f"lab/tree/{NOTEBOOK}"
    finally:
        server.terminate()
        server.wait(30)


def test_restart_and_run_all_shows_every_figure_and_no_error(browser, lab):
    def texts(selector):
        # By a script: an element that is drawn anew in the meantime would raise.
        return browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )

    def click(selector):
        found = browser.find_elements("css selector", selector)
        try:
            return bool(found) and found[0].click() is None
        except WebDriverException:  # drawn anew, or not yet in reach
            return False

    from selenium.common.exceptions import WebDriverException

    browser.get(lab)
    output = ".jp-Notebook .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.{}']"
    number = ".jp-Notebook .jp-CodeCell .jp-InputArea-prompt"
    wait_for(
        lambda: browser.execute_script(
            "return document.querySelector(\".jp-Notebook-ExecutionIndicator\")?.dataset.status"
        ) == "idle",
        "the kernel",
    )  # fmt: skip
    toolbar = ".jp-NotebookPanel-toolbar "
    wait_for(lambda: click(toolbar + "[data-command='notebook:restart-run-all']"), "the button")
    wait_for(lambda: click(".jp-Dialog .jp-mod-accept"), "the question whether to restart")
    num_cells = len(code_cells(small_notebook(ROOT / NOTEBOOK, "run")))
    everything = [f"[{n}]:" for n in range(1, num_cells + 1)]
    wait_for(lambda: texts(output.format("error")) or texts(number) == everything, "the last cell")
    height = browser.execute_script(
        "return document.querySelector('.jp-WindowedPanel-outer').scrollHeight"
    )
    browser.set_window_size(1400, height + 200)
    keep_screenshot(browser, "notebook.png")

    assert texts(output.format("error")) == []
    assert texts(output.format("stderr")) == []
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.jp-Notebook .jp-OutputArea-output img')]"
        ".filter(e => e.src.startsWith('data:image/png')).map(e => e.naturalWidth)"
    )
    assert len(widths) == 10 and min(widths) > 400
