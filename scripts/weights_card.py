"""The card of a file of weights, for those who find it without its repository."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.tables import table
from models import CustomResNet
from onecycle.recipe import Recipe
from onecycle.results.report.words import percent
from onecycle.results.weights import load_weights

CARD = Path(__file__).with_suffix(".md")
SOURCES = {"CIFAR-10": "CIFAR-10", "CIFAR-10 (image folder)": "CIFAR-10, JPEG copy"}
"""What a data set is called where its figures are published."""


def share(evaluation: Mapping[str, Any]) -> str:
    """The accuracy of an evaluation with its counts."""
    images, errors = evaluation["images"], evaluation["errors"]
    return f"**{evaluation['accuracy']:.2%}** ({images - errors:,} of {images:,})"


def recipe_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each number of a recipe, with the learning rates that it had."""
    recipe, rows = results["recipe"], []
    for each in fields(Recipe):
        value, about = recipe.get(each.name), each.metadata["about"]
        if value is not None:
            about = about.partition(" (")[0]  # what no value stands for
        value = results["learning_rate"].get(each.name) if value is None else value
        if value is not None:
            value = f"{value:.4g}" if isinstance(value, float) else str(value)
            rows.append((f"`{each.name}`", value, about))
    return rows


def render_card(file: Path, results: Mapping[str, Any], evaluated: Mapping[str, Any] | None) -> str:
    """The card of a file of weights: what it is, what it was trained on, how good it is, limits.

    Args:
        file: the weights.
        results: the numbers of the run that trained them.
        evaluated: the numbers of ``onecycle evaluate`` on this file, if there are some.
    """
    weights, content = load_weights(file), file.read_bytes()
    parameters = sum(p.numel() for p in CustomResNet.from_pretrained(weights).parameters())
    machine, final = results["machine"], results["final"]
    facts = {
        "File": f"`{file.name}`, {len(content):,} bytes, safetensors",
        "SHA-256": f"`{hashlib.sha256(content).hexdigest()}`",
        "Network": f"`CustomResNet(num_classes={len(weights.classes)})`, {parameters:,} parameters, "
        "in half precision",
        "Classes, in order": ", ".join(weights.classes),
        "Input": f"32x32 RGB as 0..1, minus the mean {list(weights.mean)}, divided by "
        f"{list(weights.std)}",
        "Trained on": f"{SOURCES[weights.source]}: {weights.data['num_train']:,} images, in "
        f"{machine['precision']}",
        "Recipe": ", ".join(f"{name} {value}" for name, value, _ in recipe_rows(results)),
    }
    figures = {
        "At the end of training, before rounding to half precision": "test accuracy "
        f"{final['test_accuracy']:.2%}, loss {final['test_loss']:.4f} nats, in {machine['precision']}",
    }
    head = ["class", "accuracy at the end of training"]
    scores = [(name, percent(value, 1)) for name, value in final["class_accuracy"].items()]
    if evaluated:
        measured, machine = evaluated["evaluation"], evaluated["machine"]
        figures = {
            "Test accuracy of this file, in float32": share(measured),
            "The same, averaged with mirror images (flip TTA)": percent(
                measured["mirrored_accuracy"]
            ),
            "Test loss of this file": f"{measured['loss']:.4f} nats",
            "Expected calibration error": f"{measured['calibration']['error']:.4f}",
            "Measured on": f"{machine['device_name']}, torch {machine['versions']['torch']}",
        } | figures
        head = ["class", "precision", "recall", "F1"]
        scores = [
            (each["name"], *(percent(each[key], 1) for key in ("precision", "recall", "f1")))
            for each in measured["classes"]
        ]
    return CARD.read_text("utf-8").format(
        file=file.name,
        facts=table(["", ""], facts.items()),
        figures=table(["", ""], figures.items()),
        scores=table(head, scores),
    )
