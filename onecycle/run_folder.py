"""A run and its folder: what makes it this run and no other, what it left, what it writes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from onecycle.errors import CheckpointError, StorageError, UsageError
from onecycle.files import write_file
from onecycle.optim.lr_rule import LRFinding
from onecycle.recipe import Recipe, as_data, may_be
from onecycle.records import History
from onecycle.results.evaluation import Evaluation
from onecycle.results.folder import (
    own_folder,
    prepare_folder,
    results_of,
    write_run,
)
from onecycle.results.origin import one_line
from onecycle.results.reading import ORIGIN, read_history, read_results
from onecycle.results.report import build_report
from onecycle.results.weights import load_into, save_weights
from onecycle.schema import Misfit, Number, check, of_record
from onecycle.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from onecycle.run import Run

NOTES = {
    "rates?": of_record(LRFinding) | {"lr_max": Number(0), "lr_min": Number(0)},
    "run?": ORIGIN,
}
"""What a checkpoint keeps of a run besides its parts."""


def describe_run(run: Run) -> dict[str, Any]:
    """What a run is called, when it was begun, and how long and how large it is, in plain data."""
    unknown = dict.fromkeys(("author", "date", "commit"))
    return {
        "name": one_line(os.path.basename(os.path.realpath(run.folder))),
        **unknown,
        **run.origin,
        "seconds": sum(record.train_seconds for record in run.history.epochs),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
    }


def describe_images(run: Run) -> dict[str, Any]:
    """The images of a run in plain data, for results, report and weights."""
    return {
        "source": run.train.source,
        "classes": list(run.train.classes),
        "mean": list(run.train.mean),
        "std": list(run.train.std),
        "num_train": len(run.train),
        "num_test": len(run.test),
        "evaluated_on": run.test.name,
        "augmentation": "batched" if run.augment is None else run.given["augment"],
        "model": run.given["model"],
        "notes": run.notes,
    }


def identify(run: Run) -> dict[str, Any]:
    """What decides the numbers of a run, in plain data."""
    plain = as_data(Recipe())  # a field that is added later changes nothing while it is off
    recipe = {name: v for name, v in as_data(run.recipe).items() if v != plain[name]}
    return {
        "recipe": recipe,
        "data": _without_notes(run.data) | {"sha256": [run.train.digest(), run.test.digest()]},
        "parts": run.given,
        "start": None if run.start is None else run.start.sha256,
        "workers": run.workers if run.augment else None,
        "steps_per_epoch": len(run.train_loader),  # a large group leaves a small batch out
    }


def _without_notes(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != "notes"}


def digest_of(identity: Mapping[str, Any]) -> str:
    """The identity of a run as a short text, for ``results.json``."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def is_result_of(run: Run, results: dict[str, Any]) -> bool:
    """Whether the content of a ``results.json`` is this run's."""
    if "history" not in results:  # an evaluation's
        return False
    if "identity" in results:
        return results["identity"] == digest_of(run.identity)
    stored = results["data"]  # from before there were digests
    return may_be(results["recipe"], run.recipe) and stored.items() <= run.data.items()


def finished_results(run: Run) -> dict[str, Any]:
    """What this run left in its folder when it was finished, or nothing, for all processes alike.

    Raises:
        StorageError: the folder holds another finished run, or this one is to begin afresh.
        UsageError: the processes of the group train different runs.
    """
    run.compute.group.compare(
        run.identity
        | {"precision": run.compute.precision, "compile": run.compute.compile_mode}
        | {"parameters": sum(parameter.numel() for parameter in run.model.parameters())}
    )
    results = run.compute.group.same(read_results(run.folder) if run.is_first else None)
    if results and (run.resume != "auto" or not is_result_of(run, results)):
        prepare_folder(run.folder)  # says why not
    return results


def reopen(
    folder: Path, results: dict[str, Any], model: nn.Module
) -> tuple[History, LRFinding, list[str]]:
    """Give a network the weights of a finished run; what was measured, and the lines of its log.

    Raises:
        CheckpointError: a file is missing, damaged or another network's.
    """
    history, lines = read_history(folder, results)
    stored = {"lrs": [], "losses": [], "smoothed": []} | results["learning_rate"]
    finding = LRFinding(**{each.name: stored[each.name] for each in fields(LRFinding)})
    load_into(model, folder / "model.safetensors")
    return history, finding, lines


def stored_average(run: Run, results: Mapping[str, Any]) -> float | None:
    """Accuracy of the average of the weights, 0..1, if it is of the images that this run has."""
    accuracy = results["evaluation"].get("average_accuracy")
    if accuracy is None:
        return None
    stored = {
        "data": _without_notes(results["data"]) | {"sha256": run.identity["data"]["sha256"]},
        "parts": results.get("parts"),
        "start": results["start"]["sha256"] if results.get("start") else None,
    }
    return accuracy if digest_of(run.identity | stored) == results.get("identity") else None


def write_folder(run: Run, evaluation: Evaluation) -> None:
    """The folder of a finished run: weights, report, results, tables, log and figures.

    Raises:
        StorageError: something cannot be written; the message says where the training is kept.
    """
    try:
        _write_folder(run, evaluation)
    except StorageError as error:
        last = run.checkpoint.last
        kept = f"; the training is kept in {last}, and the same command goes on from it"
        raise StorageError(f"{error}{kept if last else ''}") from error


def _write_folder(run: Run, evaluation: Evaluation) -> None:
    about = run.about
    title = f"{about['run']['name']}: {run.given['model']} on {run.test.source}"
    with own_folder(run.folder):
        try:
            save_weights(
                run.folder / "model.safetensors", run.model.state_dict(),
                data=about["data"], recipe=about["recipe"], dtype=torch.float32,
            )  # fmt: skip
        except UsageError as error:
            run.log.write(f"without model.safetensors, which evaluate and predict read: {error}")
        if run.train.skipped:
            write_file(run.folder / "left_out.txt", "\n".join([*run.train.skipped, ""]).encode())
        report = build_report(
            about, evaluation, run.test.data, title=title, history=run.history,
            samples=run.samples, maps=run.error_maps, command=run.command,
        )  # fmt: skip
        results = results_of(about, run.history, evaluation) | {"identity": digest_of(run.identity)}
        results["images_sha256"] = run.identity["data"]["sha256"]
        write_run(
            run.folder, results, model=run.model, history=run.history, evaluation=evaluation,
            log=run.log.lines, figures=run.figures(), report=report,
        )  # fmt: skip
        run.checkpoint.discard()


def open_checkpoint(run: Run) -> Checkpoint:
    """The state of the unfinished run in its folder, loaded if there is one.

    Raises:
        CheckpointError: it is damaged or another run's, or not all processes see it.
    """
    checkpoint = Checkpoint(
        run.folder,
        identity=run.identity,
        environment=run.machine,
        extra={"log": run.log},
        every_s=run.save_every_s,
        write=run.is_first,
    )
    resumed = checkpoint.load(run.resume)
    if resumed:
        try:
            check(checkpoint.notes, NOTES, "notes")
        except Misfit as error:
            raise CheckpointError(
                f"{checkpoint.source} does not fit: {error}; name another file, or start again "
                "without resuming"
            ) from error
    if not run.compute.group.agrees(resumed):
        raise CheckpointError(
            f"not all processes see the checkpoint in {run.folder}: "
            "name a folder that all machines share"
        )
    for warning in checkpoint.warnings:
        run.log.show(warning)
    if resumed:
        run.log.show(f"resuming from {checkpoint.source}")
    return checkpoint
