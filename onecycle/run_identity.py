"""What makes a run this run and no other: compared with what lies in its folder."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from onecycle.errors import CheckpointError
from onecycle.recipe import as_data, with_later_fields
from onecycle.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from onecycle.run import Run


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
    }


def identify(run: Run) -> dict[str, Any]:
    """What decides the numbers of a run, in plain data."""
    return {
        "recipe": as_data(run.recipe),
        "data": run.data | {"sha256": [run.train.digest(), run.test.digest()]},
        "parts": run.given,
        "workers": run.workers if run.augment else None,
        "steps_per_epoch": len(run.train_loader),  # a large group leaves a small batch out
    }


def digest_of(run: Run) -> str:
    """The identity as a short text, for ``results.json``."""
    return hashlib.sha256(json.dumps(run.identity, sort_keys=True).encode()).hexdigest()


def is_result_of(run: Run, results: dict[str, Any]) -> bool:
    """Whether the content of a ``results.json`` is this run's."""
    if "history" not in results:  # an evaluation's
        return False
    if "identity" in results:
        return results["identity"] == digest_of(run)
    recipe = with_later_fields(results["recipe"])  # of a run from before there were digests
    return recipe == as_data(run.recipe) and results["data"] == run.data


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
