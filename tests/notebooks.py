"""The notebook made small, for tests and for scripts/check_environment.py."""

import nbformat

DIGITS = """
from onecycle import load_digits

data = train, test = load_digits()
data = train, test = train.sample(32), test.sample(20)
"""
SMALLER = {
    "Recipe(epochs=EPOCHS)": "Recipe(epochs=EPOCHS, batch_size=8, finder_steps=20)",
    "Recipe(epochs=2, lr_max=0.002)": "Recipe(epochs=2, lr_max=0.002, batch_size=8)",
}
STOP = """
class Stop:
    def on_epoch(self, record):
        raise KeyboardInterrupt

run.callbacks.append(Stop())
"""
"""A cell that interrupts the training after its first epoch, as the stop button does."""


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def small_notebook(file, out, *, stopped=False):
    """The notebook with a few digits and two epochs.

    Args:
        file: the notebook.
        out: folder of the run.
        stopped: it is interrupted after the first epoch, and ends with the training cell.
    """
    notebook = nbformat.read(file, as_version=4)
    cells = {
        name: cell
        for cell in code_cells(notebook)
        for name in ("OUT = ", "load_cifar10(DATA_DIR", "run.fit()")
        if name in cell.source
    }
    settings, load, fit = (notebook.cells.index(cell) for cell in cells.values())
    for cell in code_cells(notebook):
        for text, smaller in SMALLER.items():
            cell.source = cell.source.replace(text, smaller)
    notebook.cells[load].source = DIGITS.strip()
    if stopped:
        del notebook.cells[fit + 1 :]
        notebook.cells.insert(fit, nbformat.v4.new_code_cell(STOP.strip()))
    overrides = nbformat.v4.new_code_cell(f"EPOCHS, OUT = 2, {str(out)!r}")
    notebook.cells.insert(settings + 1, overrides)
    return notebook
