"""A finished run as a folder: results, history, weights, log and figures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from onecycle.errors import StorageError
from onecycle.files import write_whole

FIGURE_DPI = 150


def prepare_folder(out_dir: str | os.PathLike) -> Path:
    """Make the folder of a run and show that it can be written, before anything is trained.

    Raises:
        StorageError: it cannot be made or written, or holds a finished run already.
    """
    out_dir = Path(out_dir)
    try:
        if (out_dir / "results.json").exists():
            raise StorageError(
                f"{out_dir} holds a finished run already; name another folder "
                "(--out, or OUT in the notebook)"
            )
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir):
            pass
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write to {out_dir}: {error.strerror}") from error
    return out_dir


def write_run(
    out_dir: str | os.PathLike,
    *,
    model: nn.Module,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    learning_rate: Mapping[str, Any],
    machine: Mapping[str, Any],
    epochs: Sequence[Any],
    steps: Sequence[Any],
    labels: np.ndarray,
    predicted: np.ndarray,
    log: Iterable[str],
    figures: Mapping[str, Figure],
    evaluation: Mapping[str, Any] | None = None,
    tables: Mapping[str, Sequence[Sequence[Any]]] | None = None,
    report: str | None = None,
) -> Path:
    """Write a finished run: what it gave, in forms that people and programs read.

    ``results.json`` comes last: where it is, the folder is whole.

    Args:
        out_dir: the folder, made where it is missing.
        model: trained; its weights go into ``model.pt`` with recipe and data, which loads with
            ``weights_only=True``.
        recipe: plain data.
        data: plain data with ``source``, ``classes``, ``mean``, ``std``, and what was counted.
        learning_rate: plain data: LRMAX and LRMIN, and how they were found.
        machine: plain data, the hardware and the versions.
        epochs: a record an epoch, for ``history.csv`` and ``history`` in ``results.json``; the
            last one's ``test_loss`` and ``test_accuracy`` are the final ones.
        steps: a record a step, for ``steps.csv``.
        labels: (N,) true classes of the images that were evaluated on.
        predicted: (N,) classes that the network gives them.
        log: the lines of ``log.txt``.
        figures: by file name, for ``figures/NAME.png``.
        evaluation: plain data, what the images showed in all: ``evaluation`` in ``results.json``.
        tables: by file name, for ``NAME.csv``: rows, the first of which names the columns.
        report: the HTML of ``report.html``.

    Returns:
        The folder.

    Raises:
        StorageError: something cannot be written.
    """
    out_dir = Path(out_dir)
    history = [dataclasses.asdict(record) for record in epochs]
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    results = {
        "recipe": dict(recipe),
        "data": dict(data),
        "learning_rate": dict(learning_rate),
        "machine": dict(machine),
        "final": {
            "epoch": history[-1]["epoch"],
            "test_loss": history[-1]["test_loss"],
            "test_accuracy": history[-1]["test_accuracy"],
            "train_accuracy": history[-1]["train_accuracy"],
            "class_accuracy": {
                name: float((predicted[labels == k] == k).mean()) if (labels == k).any() else None
                for k, name in enumerate(data["classes"])
            },
        },
        "seconds": {
            "train": sum(row["train_seconds"] for row in history),
            "test": sum(row["test_seconds"] for row in history),
        },
        **({} if evaluation is None else {"evaluation": dict(evaluation)}),
        "history": history,
    }
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "results.json").unlink(missing_ok=True)
        write_whole(out_dir / "log.txt", "\n".join([*log, ""]).encode())
        write_whole(out_dir / "history.csv", _csv(_rows(epochs)))
        write_whole(out_dir / "steps.csv", _csv(_rows(steps)))
        stream = io.BytesIO()
        torch.save({"state_dict": weights, "recipe": dict(recipe), "data": dict(data)}, stream)
        write_whole(out_dir / "model.pt", stream.getvalue())
        (out_dir / "figures").mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            stream = io.BytesIO()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
                figure.savefig(stream, format="png", dpi=FIGURE_DPI)
            write_whole(out_dir / "figures" / f"{name}.png", stream.getvalue())
        _write_evaluation(out_dir, results, tables or {}, report)
    except OSError as error:
        raise StorageError(f"cannot write to {out_dir}: {error.strerror or error}") from error
    return out_dir


def write_evaluation(
    out_dir: str | os.PathLike,
    *,
    results: Mapping[str, Any],
    tables: Mapping[str, Sequence[Sequence[Any]]],
    report: str,
) -> Path:
    """Write what given weights make of images, where nothing was trained.

    Args:
        out_dir: the folder, made where it is missing.
        results: plain data, for ``results.json``, which comes last.
        tables: by file name, for ``NAME.csv``: rows, the first of which names the columns.
        report: the HTML of ``report.html``.

    Returns:
        The folder.

    Raises:
        StorageError: something cannot be written.
    """
    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "results.json").unlink(missing_ok=True)
        _write_evaluation(out_dir, results, tables, report)
    except OSError as error:
        raise StorageError(f"cannot write to {out_dir}: {error.strerror or error}") from error
    return out_dir


def _write_evaluation(
    out_dir: Path, results: Mapping, tables: Mapping[str, Sequence], report: str | None
) -> None:
    for name, rows in tables.items():
        write_whole(out_dir / f"{name}.csv", _csv(rows))
    if report is not None:
        write_whole(out_dir / "report.html", report.encode())
    write_whole(
        out_dir / "results.json",
        json.dumps(results, indent=1, allow_nan=False).encode() + b"\n",
    )


def _rows(records: Sequence[Any]) -> list[list[Any]]:
    columns = [field.name for field in dataclasses.fields(records[0])]
    return [columns, *([getattr(record, name) for name in columns] for record in records)]


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
