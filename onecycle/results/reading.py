"""What a finished run left in its folder, checked before anything is made of it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onecycle.errors import CheckpointError, UsageError
from onecycle.files import printable, read_regular
from onecycle.recipe import stored_recipe
from onecycle.records import EpochRecord, History, StepRecord
from onecycle.results.folder import RESULTS_FILE
from onecycle.results.weights import IMAGES
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
