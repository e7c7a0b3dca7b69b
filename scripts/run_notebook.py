#!/usr/bin/env python3
"""Execute the notebook in place, as "Restart and run all" would: run_notebook.py [NOTEBOOK].

The notebook's settings are read from the environment, see its second code cell.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main(file: str = "S10_Assignment.ipynb") -> None:
    path = Path(file).resolve()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,  # of a bar only what stays
        record_timing=False,
    )
    try:
        client.execute()
    except BaseException:
        path = path.with_suffix(".failed.ipynb")  # the outputs that were there stay
        raise
    finally:
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
