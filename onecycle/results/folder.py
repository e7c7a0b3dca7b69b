"""The folder of a run: results, history, weights, log, figures and report."""

from __future__ import annotations

import csv
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

from onecycle.errors import CheckpointError, StorageError, UsageError
from onecycle.files import lock_folder, printable, read_regular, to_csv, to_json, write_whole
from onecycle.recipe import stored_recipe
from onecycle.records import EpochRecord, History, StepRecord
from onecycle.results.evaluation import Evaluation
from onecycle.results.figures.style import own_style
from onecycle.results.weights import IMAGES, without_wrappers
from onecycle.schema import (
    COUNT,
    PLAIN,
    SHARE,
    Many,
    Maybe,
    Misfit,
    Named,
    Number,
    Text,
    check,
    of_record,
    parse_json,
    parse_row,
)

FIGURE_DPI = 150
RESULTS_FILE = "results.json"
MOST_STEPS_BYTES = 1 << 30
"""Of ``steps.csv``, which has 50 bytes per step."""
EPOCH, STEP = of_record(EpochRecord), of_record(StepRecord)
RESULTS = {
    "recipe": Named(PLAIN),
    "data": IMAGES | {"num_test?": COUNT, "evaluated_on?": Text()},
    "evaluation": {
        "images": Number(1, COUNT.high, whole=True), "errors": COUNT, "accuracy": SHARE,
        "loss": Number(0), "average_accuracy?": Maybe(SHARE),
        "classes": Many({"name": Text(), "recall": Maybe(SHARE), "support": COUNT}, least=1),
    },
    "machine?": {"versions?": Named(Text())},
    "images_sha256?": Maybe(Many(Text(), least=2, most=2)),
}  # fmt: skip
"""What each ``results.json`` has; a question mark: unless an older version wrote it."""
ORIGIN = {
    **{f"{name}?": Maybe(Text()) for name in ("name", "author", "date", "commit")},
    "seconds?": Number(0), "parameters?": COUNT,
}  # fmt: skip
"""What a run says of itself."""
TRAINING = {
    "history": Many(EPOCH, least=1),
    "final": {name: EPOCH[name] for name in ("epoch", "test_loss", "test_accuracy", "train_accuracy")},
    "learning_rate": {
        "lr_max": Number(), "lr_min": Number(), "rule": Text(),
        **{f"{name}?": Many(Maybe(Number())) for name in ("lrs", "losses", "smoothed")},
    },
    "seconds": Named(Number(0)),
    "run?": ORIGIN,
    "parts?": Named(Text()),
    "start?": Maybe({"sha256": Text()}),
    "identity?": Text(),
}  # fmt: skip
"""What that of a training has besides."""


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
    is_new = not folder.exists()
    try:
        if not (folder / RESULTS_FILE).exists():
            prepare_folder(folder)
        with lock_folder(folder) as warning:
            yield warning
    finally:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def read_results(folder: str | os.PathLike) -> dict[str, Any]:
    """What a finished run or an evaluation left in its folder, or nothing.

    Raises:
        CheckpointError: there is a ``results.json`` that is none, or whose parts do not go together.
    """
    file = Path(folder) / RESULTS_FILE
    try:
        results = parse_json(read_regular(file))
        check(results, RESULTS)
        if "history" in results:
            _check_training(results)
        return results
    except (FileNotFoundError, NotADirectoryError):  # the latter is refused where it is made
        return {}
    except (OSError, Misfit) as error:
        raise CheckpointError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}; it holds no "
            "results of a run; remove it, or name another folder"
        ) from error


def _check_training(results: Mapping[str, Any]) -> None:
    """Refuse results of a training whose parts do not go together.

    Raises:
        Misfit: as said.
    """
    check(results, TRAINING)
    try:
        recipe = stored_recipe(results["recipe"])
    except UsageError as error:
        raise Misfit(f"recipe: {error}") from error
    history, final, keep = results["history"], results["final"], recipe.keep
    if recipe.epochs not in (None, len(history)):
        raise Misfit(
            f"history has {len(history)} rows; it must have {recipe.epochs}, one per epoch"
        )
    check_numbers(row["epoch"] for row in history)
    best = max(history, key=lambda row: row["test_accuracy"] or 0)
    row = best if keep == "best" else history[-1]
    names = ("epoch", "train_accuracy") + (
        ("test_accuracy", "test_loss") if keep != "average" else ()
    )
    for name in names:
        if final[name] != row[name]:
            raise Misfit(
                f"final.{name} is {final[name]}; it must be {row[name]}, as in the history"
            )
    _check_evaluation(results["evaluation"])


def _check_evaluation(evaluation: Mapping[str, Any]) -> None:
    images, errors, accuracy = (evaluation[name] for name in ("images", "errors", "accuracy"))
    if errors > images or abs(accuracy - (images - errors) / images) > 1e-6:
        raise Misfit(
            f"evaluation.accuracy is {accuracy}; it must be that of {errors} errors in {images} images"
        )
    found = sum(score["support"] for score in evaluation["classes"])
    if found != images:
        raise Misfit(f"evaluation.classes have {found} images; they must have {images}")


def check_numbers(epochs: Iterable[int]) -> None:
    """Refuse rows of epochs that are not numbered from 1.

    Raises:
        Misfit: as said.
    """
    for number, epoch in enumerate(epochs, 1):
        if epoch != number:
            raise Misfit(f"history row {number} has epoch {epoch}; it must be {number}")


def read_history(folder: Path, results: Mapping[str, Any]) -> tuple[History, list[str]]:
    """What :func:`write_run` wrote of a training: its records and the lines of its log.

    Args:
        folder: of the run.
        results: of :func:`read_results`.

    Raises:
        CheckpointError: a file is missing or is not what it was written as.
    """
    epochs = [EpochRecord(**{n: row[n] for n in EPOCH}) for row in results["history"]]
    file = folder / "steps.csv"
    try:
        text = read_regular(file, MOST_STEPS_BYTES).decode("utf-8")
        steps = [_step(row, number) for number, row in enumerate(csv.DictReader(io.StringIO(text)))]
        if not steps or len(steps) % len(epochs):
            raise Misfit(
                f"it has {len(steps)} steps; it must have as many in each of {len(epochs)} epochs"
            )
        file = folder / "log.txt"
        log = read_regular(file).decode("utf-8").splitlines()
    except (OSError, ValueError, csv.Error) as error:
        raise CheckpointError(
            f"{file} cannot be read: {printable(getattr(error, 'strerror', None) or error)}; "
            "train again in another folder"
        ) from error
    return History(epochs, steps), log


def _step(row: Mapping[str, Any], number: int) -> StepRecord:
    """A row of ``steps.csv``."""
    place = f"row {number + 1}"
    step = StepRecord(**parse_row(row, STEP, place))
    if step.step != number:
        raise Misfit(f"{place} has step {step.step}; it must be {number}")
    return step


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
        raise StorageError(f"cannot write to {folder}: {error.strerror or error}") from error


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
