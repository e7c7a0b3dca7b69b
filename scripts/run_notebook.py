#!/usr/bin/env python3
"""Execute a notebook in place: run_notebook.py FILE. After an error the file is as it was.

``jupyter execute`` would keep each state of a progress bar, the time of each cell, and widgets.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def execute(notebook, folder):
    """Run all cells in a folder; what they print is as a terminal shows it in the end."""
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, resources=resources, coalesce_streams=True, record_timing=False
    )
    client.execute()
    notebook.metadata.pop("widgets", None)


if __name__ == "__main__":
    (file,) = map(Path, sys.argv[1:])
    notebook = nbformat.read(file, as_version=4)
    execute(notebook, file.resolve().parent)
    nbformat.write(notebook, file)
