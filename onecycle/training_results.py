"""What a finished run leaves: its evaluation, which evaluate.py shares, and its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from onecycle.commands.common import say
from onecycle.data.augmentation import get_test_batch_transform
from onecycle.data.dataset import ImageDataset
from onecycle.errors import UsageError
from onecycle.records import History
from onecycle.results.evaluation import Evaluation, evaluate_predictions
from onecycle.results.figures import errors as error_figures
from onecycle.results.figures import training as visualize
from onecycle.results.folder import write_run
from onecycle.results.grad_cam import explain_errors
from onecycle.results.report import build_report
from onecycle.results.weights import save_weights
from onecycle.training.group import Group
from onecycle.training.loop import predict
from onecycle.training_parts import Normal


def measure(
    model: nn.Module,
    loader: Any,
    test: ImageDataset,
    *,
    precision: str,
    mirrored: bool,
    group: Group | None = None,
) -> Evaluation:
    """Of the images and, where they mean the same, of their mirror images."""
    found = predict(model, loader, precision=precision, group=group, mirrored=mirrored)
    return evaluate_predictions(
        found.probabilities, found.labels, test.classes,
        mirrored=found.mirrored, indices=test.indices,
    )  # fmt: skip


def explain(
    model: nn.Module, test: ImageDataset, evaluation: Evaluation, normal: Normal
) -> dict[str, Any]:
    """Where the network looked in its surest errors, see :func:`explain_errors`."""
    device = next(model.parameters()).device

    def normalise(indices: torch.Tensor, epoch: int) -> torch.Tensor:
        few = test.data[indices.cpu().numpy()]  # all of them may not fit the device
        transform = get_test_batch_transform(few, *normal, device=device)
        return transform(torch.arange(len(few), device=device), epoch)

    return explain_errors(model, normalise, evaluation)


def draw(
    train, test, history, rates, samples, evaluation, explained, mean, std, *, steps_per_epoch: int
) -> dict[str, Figure]:
    """The figures of a run, by file name."""
    wrong = explained["indices"]
    shown = {"source": train.source, "classes": train.classes}
    figures = {
        "class_counts": visualize.plot_class_counts(train.targets, **shown),
        "samples": visualize.plot_samples(*samples, mean=mean, std=std, **shown),
    }
    if "losses" in rates:
        figures["lr_finder"] = visualize.plot_lr_finder(**rates, source=train.source)
    return figures | {
        "history": visualize.plot_history(history.epochs, source=train.source),
        "lr_history": visualize.plot_lr_history(
            history.steps, source=train.source, steps_per_epoch=steps_per_epoch
        ),
        "misclassified": visualize.plot_misclassified(
            test.data, evaluation.labels, evaluation.probabilities, **shown
        ),
        "confusion_matrix": visualize.plot_confusion_matrix(
            evaluation.labels, evaluation.predicted, **shown
        ),
        "confused_pairs": error_figures.plot_confused_pairs(evaluation.confused_pairs, **shown),
        "reliability": error_figures.plot_reliability(
            evaluation.bins, calibration_error=evaluation.calibration_error, source=train.source
        ),
        "grad_cam": error_figures.plot_grad_cam(
            test.data[wrong], evaluation.labels[wrong], evaluation.predicted[wrong],
            explained["predicted"], explained["true"], layer=explained["layer"], **shown,
        ),
    }  # fmt: skip


def write_results(
    out: Path,
    model: nn.Module,
    test: ImageDataset,
    history: History,
    evaluation: Evaluation,
    *,
    about: dict[str, Any],
    samples: tuple[Any, Any],
    explained: dict[str, Any],
    figures: dict[str, Figure],
    log: list[str],
    command: str,
) -> None:
    """The folder of the run, with its report and the weights for other programs."""
    try:
        save_weights(
            out / "model.safetensors", model.state_dict(), data=about["data"],
            recipe=about["recipe"], dtype=torch.float32,
        )  # fmt: skip
    except UsageError as error:
        say(f"without model.safetensors for predict.py and evaluate.py: {error}")
    report = build_report(
        about | {"history": [dataclasses.asdict(record) for record in history.epochs]},
        evaluation,
        test.data,
        title=f"Custom ResNet on {test.source}",
        steps=history.steps,
        samples=samples,
        grad_cam=explained,
        command=command,
    )
    write_run(
        out,
        **about,
        model=model,
        epochs=history.epochs,
        steps=history.steps,
        labels=evaluation.labels,
        predicted=evaluation.predicted,
        log=log,
        figures=figures,
        evaluation=evaluation.summary(),
        tables={"errors": evaluation.error_rows(), "classes": evaluation.class_rows()},
        report=report,
    )
