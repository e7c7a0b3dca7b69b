"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from onecycle.records import History
from onecycle.results.evaluation import Evaluation
from onecycle.results.grad_cam import ErrorMaps

from .classes import classes
from .failures import MOST_ERRORS, calibration, errors, grad_cam_part
from .sprites import Sprite
from .training import curves, learning_rate, samples_part
from .words import definitions, kept_words, percent

_SOURCE_NOTES = {
    "CIFAR-10 (image folder)": (
        "The images come from a folder of pictures and not from the official files; where they "
        "were encoded again, as JPEG, figures from the official files do not compare.",
    )
}
FLIP_TTA = "Flip TTA: each prediction is averaged over the image and its mirror image."
OVERFITTING = 0.15
"""How far the training accuracy may be above the other one without a remark."""
MOST_CLASSES = 20
"""Class names among the facts; the table above has all."""


def build_report(
    about: Mapping[str, Any],
    evaluation: Evaluation,
    images: np.ndarray,
    *,
    title: str,
    history: History | None = None,
    samples: tuple[np.ndarray, Sequence[int]] | None = None,
    maps: ErrorMaps | None = None,
    command: str = "",
) -> str:
    """A page that shows how a network was trained and where it fails.

    It asks for nothing over a network, runs no script but its own, and escapes every text.

    Args:
        about: what ``results.json`` holds, as far as it is known: ``recipe``, ``data`` with
            ``source``, ``evaluated_on``, ``mean`` and ``std``, ``learning_rate``, ``machine``. A
            part that is missing is left out of the page.
        evaluation: of the network.
        images: (N, H, W, 3) uint8, those that were evaluated on.
        title: of the page.
        history: of the training; None: the ``history`` of ``about``, if it has one.
        samples: (M, 3, H, W) float images as the network was trained on them, channel-normalised
            with the mean and std of ``about``, and their (M,) class indices.
        maps: of the most confident errors.
        command: what makes the run again.

    Returns:
        The HTML.
    """
    about = dict(about)
    if history is not None:
        about["history"] = [dataclasses.asdict(record) for record in history.epochs]
    names = [escape(name) for name in evaluation.classes]
    wrong = evaluation.wrong[:MOST_ERRORS]
    sprites = {"errors": Sprite("errors", images[wrong])} if len(wrong) else {}
    steps = () if history is None else history.steps
    sections = {
        "Curves": curves(about.get("history") or ()),
        "Classes": classes(evaluation, names),
        "Errors": errors(evaluation, names, sprites.get("errors")),
        "Grad-CAM": grad_cam_part(maps, evaluation, images, names, sprites),
        "Calibration": calibration(evaluation),
        "Learning rate": learning_rate(about.get("learning_rate") or {}, steps),
        "Samples": samples_part(samples, about, names, sprites),
        "Recipe": _facts(about),
        "Reproduce": _reproduce(about, command),
    }
    return _page(title, _header(title, about, evaluation), sections, sprites)


def _page(title: str, header: str, sections: Mapping[str, str], sprites: Mapping) -> str:
    shown = {name: body for name, body in sections.items() if body}
    anchors = {name: name.lower().replace(" ", "-") for name in shown}
    body = "".join(
        f'<section id="{anchors[name]}" aria-labelledby="{anchors[name]}-title">'
        f'<h2 id="{anchors[name]}-title" tabindex="-1">{name}</h2>{part}</section>'
        for name, part in shown.items()
    )
    links = "".join(f'<li><a href="#{anchors[name]}">{name}</a></li>' for name in shown)
    script = _beside("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = _beside("report.css") + "".join(sprite.style() for sprite in sprites.values())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # Nothing is fetched, and no script but this one runs, whatever the texts hold.
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"{header}"
        f'<nav aria-label="Parts of the report"><ul>{links}</ul></nav>'
        f"<main>{body}</main><script>{script}</script></body></html>\n"
    )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _header(title: str, run: Mapping, evaluation: Evaluation) -> str:
    notes = _SOURCE_NOTES.get((run.get("data") or {}).get("source"), ())
    data, history = run.get("data") or {}, run.get("history") or ()
    total, errors = len(evaluation.labels), len(evaluation.wrong)
    where = escape(str(data.get("evaluated_on", "images")))
    when, trained = "with the given weights", None
    if history:
        keep = (run.get("recipe") or {}).get("keep", "last")
        accuracies = [row["test_accuracy"] for row in history]
        when = kept_words(keep, accuracies)
        best = accuracies.index(max(accuracies)) if keep == "best" else -1
        trained = history[best]["train_accuracy"]
    figures = {
        "errors": f"{errors:,}",
        "loss, nats": f"{evaluation.loss:.4f}",
        "calibration error": percent(evaluation.calibration_error),
        "top-5 accuracy": percent(evaluation.top5_accuracy),
        "accuracy with flip TTA": percent(evaluation.mirrored_accuracy),
        "average of the weights": percent(evaluation.average_accuracy),
        "training accuracy": percent(trained),
    }
    strip = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>"
        for name, value in figures.items()
        if value != "–"
    )
    notes = [*notes, *_overfitting(history, evaluation, where)]
    said = "".join(f"<p class='note'>{escape(note)}</p>" for note in notes)
    explained = "" if evaluation.mirrored_accuracy is None else f"<p class='hint'>{FLIP_TTA}</p>"
    return (
        f'<header><p class="eyebrow">{escape(str(data.get("source", "")))}</p>'
        f"<h1>{escape(title)}</h1>"
        f'<p class="headline"><strong>{percent(evaluation.accuracy)}</strong> accuracy: '
        f"{total - errors:,} of {total:,} {where}, {when}</p>{said}"
        f'<dl class="strip">{strip}</dl>{explained}</header>'
    )


def _overfitting(history: Sequence, evaluation: Evaluation, where: str) -> list[str]:
    trained = history[-1]["train_accuracy"] if history else None
    if trained is None or trained - evaluation.accuracy <= OVERFITTING:
        return []
    return [
        f"The network overfits: it is right on {trained:.1%} of its training images and on "
        f"{evaluation.accuracy:.1%} of the {where}; more training images, stronger augmentation or a "
        "start from trained weights help."
    ]


def _facts(run: Mapping) -> str:
    recipe, data = dict(run.get("recipe") or {}), dict(run.get("data") or {})
    known = list(map(str, data.get("classes", ())))
    more = f", … ({len(known)} in all)" if len(known) > MOST_CLASSES else ""
    data["classes"] = ", ".join(known[:MOST_CLASSES]) + more
    where = data.pop("evaluated_on", "images evaluated on")
    for name, label in (("num_train", "training images"), ("num_test", where)):
        if name in data:
            data[label] = data.pop(name)
    groups = {"Training": recipe, "Images": data}
    lists = "".join(
        f"<div><h3>{name}</h3>{definitions(facts)}</div>"
        for name, facts in groups.items()
        if any(facts.values())
    )
    return f'<div class="pair">{lists}</div>' if lists else ""


def _reproduce(run: Mapping, command: str) -> str:
    machine = dict(run.get("machine") or {})
    versions = machine.pop("versions", {})
    recipe = run.get("recipe") or {}
    seed = f" The run's seed is {escape(str(recipe['seed']))}." if "seed" in recipe else ""
    parts = [f"<pre><code>{escape(command)}</code></pre>"] if command else []
    parts.append(
        "<p>On a CPU the same seed gives the same numbers with the same machine, threads and "
        f"versions; elsewhere they differ a little.{seed}</p>"
    )
    parts.append(
        f'<div class="pair"><div><h3>Machine</h3>{definitions(machine)}</div>'
        f"<div><h3>Versions</h3>{definitions(versions)}</div></div>"
    )
    return "".join(parts) if command or machine or versions else ""
