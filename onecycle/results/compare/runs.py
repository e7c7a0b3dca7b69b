"""Finished runs as they are compared, read from their folders."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from onecycle.errors import CheckpointError, UsageError
from onecycle.files import read_regular
from onecycle.recipe import with_later_fields
from onecycle.results.reading import read_results
from onecycle.schema import COUNT, SHARE, Misfit, Text, parse_row

from .chance import mcnemar

LONGEST_LABEL = 36
ERROR = {"index": COUNT, "true": Text(), "predicted": Text(), "probability_predicted": SHARE}
CURVES = ("test_accuracy", "train_accuracy", "test_loss", "train_loss", "lr")


class ImageError(NamedTuple):
    """A misclassified image."""

    image: str
    """Its file, or its number in the data set."""
    true: str
    predicted: str
    probability: float
    """Of the predicted class, 0..1."""


@dataclass(frozen=True, slots=True, eq=False)
class FinishedRun:
    """What a finished run left in its folder."""

    folder: Path
    label: str
    """Its name, shortened, and unlike the other labels of a page."""
    about: dict[str, Any]
    """Name, date, duration, parameters, commit and author; what an older run lacks is None."""
    settings: dict[str, Any]
    """Recipe, parts, images and machine by name, in plain data."""
    curves: dict[str, list[float | None]]
    """Each of ``CURVES``, one value per epoch."""
    accuracy: float
    """0..1, of the trained network."""
    loss: float
    images: int
    """That were evaluated on."""
    wrong: int
    """Of them."""
    lr_max: float
    classes: dict[str, tuple[float | None, int]]
    """Accuracy, 0..1, and number of images of each class."""
    source: tuple
    """What the images are, as far as results tell it."""
    digest: str | None
    """SHA-256 of the images that were evaluated on; None in older runs."""
    errors: dict[int, ImageError] | None
    """By the number of the image in the data set; None if there is no errors.csv."""


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Finished runs from their folders, each with a label of its own.

    Raises:
        CheckpointError: a folder holds no finished run, or is not whole.
        UsageError: a folder is named twice, or there are fewer than two.
    """
    if len(folders) < 2:
        raise UsageError(f"{len(folders)} run to compare; name two folders or more")
    twice = [name for name, count in Counter(map(os.path.realpath, folders)).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]} is named twice; name each run once")
    runs = [_read_run(folder) for folder in folders]
    count = Counter(run.label for run in runs)
    return [
        replace(run, label=f"{run.label} ({place})") if count[run.label] > 1 else run
        for place, run in enumerate(runs, 1)
    ]


def _read_run(folder: Path) -> FinishedRun:
    results = read_results(folder)
    if not results:
        stopped = any(folder.glob("*.ckpt"))
        advice = "resume it with the command that began it" if stopped else "name the folder of one"
        raise CheckpointError(f"{folder} holds no finished run; {advice}")
    if "history" not in results:
        raise CheckpointError(
            f"{folder} holds an evaluation and no training; name the folder of a training"
        )
    return _parsed(folder, results, _read_errors(folder))


def _parsed(
    folder: Path, results: Mapping[str, Any], errors: dict[int, ImageError] | None
) -> FinishedRun:
    origin, data, evaluation = results.get("run", {}), results["data"], results["evaluation"]
    name = origin.get("name") or os.path.basename(os.path.realpath(folder))
    classes = {
        score["name"]: (score["recall"], score["support"]) for score in evaluation["classes"]
    }
    if errors is not None and len(errors) != evaluation["errors"]:
        raise CheckpointError(
            f"{folder}/errors.csv has {len(errors)} images; results.json has {evaluation['errors']} "
            "errors; remove the table, or train again in another folder"
        )
    return FinishedRun(
        folder=folder,
        label=_shortened(name),
        about={
            "name": name,
            "date": origin.get("date"),
            "seconds": origin.get("seconds", results.get("seconds", {}).get("train")),
            "parameters": origin.get("parameters"),
        },
        settings=_settings(results, origin),
        curves={key: [row[key] for row in results["history"]] for key in CURVES},
        accuracy=evaluation["accuracy"],
        loss=evaluation["loss"],
        images=evaluation["images"],
        wrong=evaluation["errors"],
        lr_max=results["learning_rate"]["lr_max"],
        classes=classes,
        source=(
            data["source"], data.get("evaluated_on"), data.get("num_test"),
            *((name, support) for name, (_, support) in classes.items()),
        ),
        digest=(results.get("images_sha256") or [None, None])[1],
        errors=errors,
    )  # fmt: skip


def _settings(results: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    data, machine = dict(results["data"]), dict(results.get("machine", {}))
    versions = machine.pop("versions", {})
    left_out = ("mean", "std")  # they follow from the images
    return {
        **with_later_fields(results["recipe"]),
        **results.get("parts", {}),
        **{name: value for name, value in data.items() if name not in left_out},
        **machine,
        **{f"{name} version": value for name, value in versions.items()},
        "commit": origin.get("commit"),
        "author": origin.get("author"),
    }


def _read_errors(folder: Path) -> dict[int, ImageError] | None:
    file = folder / "errors.csv"
    try:
        text = read_regular(file).decode("utf-8", "replace")
        rows = enumerate(csv.DictReader(io.StringIO(text, newline="")), 1)
        return dict(_error_of(row, f"row {number}") for number, row in rows)
    except FileNotFoundError:
        return None
    except (OSError, Misfit, csv.Error) as error:
        raise CheckpointError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}; "
            "remove it, or train again in another folder"
        ) from error


def _error_of(row: Mapping[str, Any], place: str) -> tuple[int, ImageError]:
    cells = parse_row(row, ERROR, place)
    name = row.get("file") or row["index"]
    rest = (cells[each] for each in ("true", "predicted", "probability_predicted"))
    return cells["index"], ImageError(name, *rest)


def _shortened(name: str) -> str:
    if len(name) <= LONGEST_LABEL:
        return name
    half = LONGEST_LABEL // 2  # names of a series differ at their ends
    return f"{name[: half - 1]}…{name[-half:]}"


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two runs on the same images."""

    only_first: list[ImageError]
    """Errors of the second that the first has right, the most confident first."""
    only_second: list[ImageError]
    """Errors of the first that the second has right."""
    p_value: float
    """Of McNemar's exact test, 0..1."""


def pair(first: FinishedRun, second: FinishedRun) -> Pair | str:
    """Two runs image by image, or why they cannot be compared so."""
    if not _same_images(first, second):
        return f"{second.label} was not evaluated on the same images as {first.label}"
    for run in (first, second):
        if run.errors is None:
            return f"{run.label} has no errors.csv"
    alone = [
        sorted(
            (error for index, error in wrong.errors.items() if index not in right.errors),
            key=lambda error: -error.probability,
        )
        for wrong, right in ((second, first), (first, second))
    ]
    return Pair(*alone, mcnemar(*map(len, alone)))


def _same_images(first: FinishedRun, second: FinishedRun) -> bool:
    if first.digest and second.digest:
        return first.digest == second.digest
    common = (first.errors or {}).keys() & (second.errors or {}).keys()
    return first.source == second.source and all(
        first.errors[index].true == second.errors[index].true for index in common
    )
