"""The folder of a run: results, history, weights, log, figures and report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from onecycle.errors import StorageError
from onecycle.files import lock_folder, to_csv, to_json, write_whole
from onecycle.paths import check_folder, kind_at, storage_error
from onecycle.records import History
from onecycle.results.evaluation import Evaluation
from onecycle.results.figures.style import own_style
from onecycle.results.weights import without_wrappers

FIGURE_DPI = 150
RESULTS_FILE = "results.json"


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
        for folder in (out_dir, out_dir / "figures"):
            check_folder(folder)
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir):
            pass
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(out_dir, error) from error
    return out_dir


@contextmanager
def own_folder(folder: Path, *, is_first: bool = True) -> Iterator[str | None]:
    """The folder of a run for this process alone; it goes again if nothing was written.

    Args:
        folder: made if it is missing.
        is_first: False in the other processes of a group, which only read.

    Yields:
        None, or a warning as :func:`onecycle.files.lock_folder` gives it.

    Raises:
        StorageError: it cannot be written, or another run is in it.
    """
    if not is_first:
        yield None
        return
    try:
        is_new, is_finished = not kind_at(folder), kind_at(folder / RESULTS_FILE)
    except OSError as error:
        raise storage_error(folder, error) from error
    if is_finished and not os.access(folder, os.W_OK):  # it is only read
        yield None
        return
    try:
        if not is_finished:
            prepare_folder(folder)
        with lock_folder(folder) as warning:
            yield warning
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # refused if something was written


def results_of(
    about: Mapping[str, Any], history: History, evaluation: Evaluation
) -> dict[str, Any]:
    """``results.json`` of a finished run, as plain data.

    Args:
        about: plain data with ``recipe``, ``data``, ``learning_rate``, ``machine`` and what else a
            run says of itself.
        history: of all epochs; the last epoch's figures are the final ones, or those of the
            weights that the recipe keeps instead.
        evaluation: of the trained network.
    """
    epochs = [dataclasses.asdict(record) for record in history.epochs]
    keep = about["recipe"].get("keep", "last")
    row = dataclasses.asdict(history.best) if keep == "best" else epochs[-1]
    final = {name: row[name] for name in ("epoch", "test_loss", "test_accuracy", "train_accuracy")}
    if keep == "average":
        final |= {"test_loss": evaluation.loss, "test_accuracy": evaluation.accuracy}
    final["class_accuracy"] = {score.name: score.recall for score in evaluation.scores}
    seconds = {part: sum(row[f"{part}_seconds"] for row in epochs) for part in ("train", "test")}
    return {
        **about,
        "final": final,
        "seconds": seconds,
        "evaluation": evaluation.summary(),
        "history": epochs,
    }


def write_run(
    out_dir: str | os.PathLike,
    results: Mapping[str, Any],
    *,
    model: nn.Module,
    history: History,
    evaluation: Evaluation,
    log: Iterable[str],
    figures: Mapping[str, Figure],
    report: str,
) -> Path:
    """Write a finished run: what it gave, in forms that people and programs read.

    ``results.json`` comes last: if it is there, the folder is whole.

    Args:
        out_dir: the folder, made if it is missing.
        results: of :func:`results_of`.
        model: trained; its weights go into ``model.pt`` with recipe and data, which loads with
            ``weights_only=True``.
        history: for ``history.csv`` and ``steps.csv``.
        evaluation: for ``errors.csv`` and ``classes.csv``.
        log: the lines of ``log.txt``.
        figures: by file name, for ``figures/NAME.png``.
        report: the HTML of ``report.html``.

    Returns:
        The folder.

    Raises:
        StorageError: something cannot be written.
    """
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in without_wrappers(model.state_dict()).items()
    }
    content = {"state_dict": weights, "recipe": results["recipe"], "data": results["data"]}
    with _writing(out_dir) as folder:
        write_whole(folder / "log.txt", "\n".join([*log, ""]).encode())
        write_whole(folder / "history.csv", to_csv(_rows(history.epochs)))
        write_whole(folder / "steps.csv", to_csv(_rows(history.steps)))
        stream = io.BytesIO()
        torch.save(content, stream)
        write_whole(folder / "model.pt", stream.getvalue())
        (folder / "figures").mkdir(exist_ok=True)
        for name, figure in figures.items():
            write_whole(folder / "figures" / f"{name}.png", to_picture(figure))
        _write_evaluation(folder, results, evaluation, report)
    return folder


def write_evaluation(
    out_dir: str | os.PathLike, results: Mapping[str, Any], evaluation: Evaluation, report: str
) -> Path:
    """Write what given weights make of images, where nothing was trained.

    Args:
        out_dir: the folder, made if it is missing.
        results: plain data, for ``results.json``, which comes last.
        evaluation: for ``errors.csv`` and ``classes.csv``.
        report: the HTML of ``report.html``.

    Returns:
        The folder.

    Raises:
        StorageError: something cannot be written.
    """
    with _writing(out_dir) as folder:
        _write_evaluation(folder, results, evaluation, report)
    return folder


def to_picture(figure: Figure, kind: str = "png", dpi: int = FIGURE_DPI) -> bytes:
    """A figure as the content of a picture file: png, pdf, svg or jpg."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), own_style():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        figure.savefig(stream, format=kind, dpi=dpi)
    return stream.getvalue()


@contextmanager
def _writing(out_dir: str | os.PathLike) -> Iterator[Path]:
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULTS_FILE).unlink(missing_ok=True)
        yield folder
    except OSError as error:
        raise storage_error(error.filename or folder, error) from error


def _write_evaluation(
    folder: Path, results: Mapping[str, Any], evaluation: Evaluation, report: str
) -> None:
    write_whole(folder / "errors.csv", to_csv(evaluation.error_rows()))
    write_whole(folder / "classes.csv", to_csv(evaluation.class_rows()))
    write_whole(folder / "report.html", report.encode())
    write_whole(folder / RESULTS_FILE, to_json(results))


def _rows(records: Sequence[Any]) -> list[list[Any]]:
    columns = [field.name for field in dataclasses.fields(records[0])]
    return [columns, *([getattr(record, name) for name in columns] for record in records)]
