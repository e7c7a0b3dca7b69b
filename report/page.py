"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .charts import Series, chart, thinned
from .sprites import Sprite, heated

MOST_ERRORS = 1200
"""Pictures in the gallery; more would make the file larger than about 5 MB."""


def build_report(
    run: Mapping[str, Any],
    evaluation: Any,
    images: np.ndarray,
    *,
    title: str,
    steps: Sequence[Any] = (),
    samples: tuple[np.ndarray, Sequence[int]] | None = None,
    grad_cam: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    command: str = "",
) -> str:
    """A page that shows how a network was trained and where it fails.

    It asks for nothing over a network, runs no script but its own, and escapes every text.

    Args:
        run: what ``results.json`` holds, as far as it is known: ``recipe``, ``data`` with
            ``source``, ``evaluated_on``, ``mean`` and ``std``, ``learning_rate``, ``machine``,
            ``history``. A part that is missing is left out of the page.
        evaluation: a record with ``classes``, ``probabilities``, ``labels``, ``predicted``,
            ``accuracy``, ``loss``, ``scores``, ``confusion``, ``wrong``, ``bins``,
            ``calibration_error`` and ``mirrored_accuracy``, as ``evaluate_predictions`` makes it.
        images: (N, H, W, 3) uint8, those that were evaluated on.
        title: of the page.
        steps: records with ``step`` (from 0) and ``lr``.
        samples: (M, 3, H, W) float images as the network was trained on them, channel-normalised
            with the run's mean and std, and their (M,) class indices.
        grad_cam: ``layer``, its name; ``indices``, (M,) of images; ``predicted`` and ``true``,
            (M, H, W) heat of the two classes, 0..1.
        notes: sentences that belong beside the headline.
        command: what makes the run again.

    Returns:
        The HTML.
    """
    names = [escape(name) for name in evaluation.classes]
    wrong = evaluation.wrong[:MOST_ERRORS]
    sprites = {"errors": Sprite("errors", images[wrong])} if len(wrong) else {}
    sections = {
        "Curves": _curves(run.get("history") or ()),
        "Classes": _classes(evaluation, names),
        "Errors": _errors(evaluation, names, sprites.get("errors")),
        "Grad-CAM": _grad_cam(grad_cam, evaluation, images, names, sprites),
        "Calibration": _calibration(evaluation),
        "Learning rate": _learning_rate(run.get("learning_rate") or {}, steps),
        "Samples": _samples(samples, run.get("data") or {}, names, sprites),
        "Recipe": _facts(run),
        "Reproduce": _reproduce(run, command),
    }
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
        f"{_header(title, run, evaluation, notes)}"
        f'<nav aria-label="Parts of the report"><ul>{links}</ul></nav>'
        f"<main>{body}</main><script>{script}</script></body></html>\n"
    )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _header(title: str, run: Mapping, evaluation: Any, notes: Sequence[str]) -> str:
    data, history = run.get("data") or {}, run.get("history") or ()
    total, errors = len(evaluation.labels), len(evaluation.wrong)
    where = escape(str(data.get("evaluated_on", "images")))
    when = f"after epoch {history[-1]['epoch']}, the last" if history else "with the given weights"
    figures = {
        "errors": f"{errors:,}",
        "loss, nats": f"{evaluation.loss:.4f}",
        "calibration error": _percent(evaluation.calibration_error),
        "with mirror images": _percent(evaluation.mirrored_accuracy),
        "training accuracy": _percent(history[-1]["train_accuracy"] if history else None),
    }
    strip = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>"
        for name, value in figures.items()
        if value != "–"
    )
    said = "".join(f"<p class='note'>{escape(note)}</p>" for note in notes)
    return (
        f'<header><p class="eyebrow">{escape(str(data.get("source", "")))}</p>'
        f"<h1>{escape(title)}</h1>"
        f'<p class="headline"><strong>{_percent(evaluation.accuracy)}</strong> accuracy: '
        f"{total - errors:,} of {total:,} {where}, {when}</p>{said}"
        f'<dl class="strip">{strip}</dl></header>'
    )


def _curves(history: Sequence[Mapping]) -> str:
    if not history:
        return ""
    epochs = [row["epoch"] for row in history]
    charts = []
    for quantity, unit, percent in (("accuracy", "share of the images", True),
                                    ("loss", "cross-entropy, nats", False)):  # fmt: skip
        write = _percent if percent else lambda v: "–" if v is None else f"{v:.4f}"
        series = [
            Series(split, epochs, [row[f"{split}_{quantity}"] for row in history], style)
            for split, style in (("test", "second"), ("train", "first"))
        ]
        series = [s for s in series if any(y is not None for y in s.y)]
        texts = [
            f"epoch {epoch}: " + ", ".join(f"{s.name} {write(s.y[i])}" for s in series)
            for i, epoch in enumerate(epochs)
        ]
        charts.append(
            chart(quantity.capitalize(), series, texts,
                  x_label="epoch", y_label=unit, percent=percent)
        )  # fmt: skip
    columns = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    rows = [[f"{row[c]:.4f}" if isinstance(row[c], float) else _or_dash(row[c]) for c in columns]
            for row in history]  # fmt: skip
    table = _table([c.replace("_", " ") for c in columns], rows, "Every epoch")
    return (
        f'<div class="pair">{"".join(charts)}</div>'
        f"<details><summary>The numbers</summary>{table}</details>"
    )


def _classes(evaluation: Any, names: Sequence[str]) -> str:
    rows = [
        [f'<a href="#errors" data-true="{k}">{names[k]}</a>', f"{score.support:,}",
         *(_percent(value, 1) for value in (score.precision, score.recall, score.f1))]
        for k, score in enumerate(evaluation.scores)
    ]  # fmt: skip
    table = _table(("class", "images", "precision", "recall", "F1"), rows, "Each class")
    confusion = evaluation.confusion
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    off = shares * ~np.eye(len(shares), dtype=bool)
    peak = off.max() or 1
    body = []
    for t, row in enumerate(confusion):
        cells = []
        for p, count in enumerate(row):
            tint = f"--tint:{(shares[t, p] if t == p else off[t, p] / peak):.2f}"
            if t == p:
                cells.append(f'<td class="right" style="{tint}">{count}</td>')
            elif count:
                said = f"{count} of {names[t]} taken for {names[p]}: show them"
                cells.append(
                    f'<td style="{tint}"><a href="#errors" data-true="{t}" data-predicted="{p}" '
                    f'aria-label="{said}" title="{said}">{count}</a></td>'
                )
            else:
                cells.append("<td>·</td>")
        body.append(f'<tr><th scope="row">{names[t]}</th>{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
    pairs = "".join(
        f'<li><a href="#errors" data-true="{t}" data-predicted="{p}">{names[t]} taken for '
        f"{names[p]}</a> <b>{count}</b></li>"
        for t, p, count in _frequent(confusion, 6)
    )
    return (
        f'<div class="pair wide"><div>{table}</div><div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">'
        '<table class="confusion"><caption>Confusion matrix: rows are true classes, columns what '
        "the network says. A number leads to its errors.</caption>"
        f'<thead><tr><td></td>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        + (f'<h3>Most frequent errors</h3><ol class="pairs">{pairs}</ol>' if pairs else "")
        + "</div></div>"
    )


def _frequent(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    off = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    cells = [(*np.unravel_index(i, off.shape), int(off.flat[i])) for i in order]
    return [cell for cell in cells if cell[2]]


def _errors(evaluation: Any, names: Sequence[str], sprite: Sprite | None) -> str:
    total = len(evaluation.wrong)
    if sprite is None:
        return "<p>Nothing is misclassified.</p>"
    wrong, labels, predicted = evaluation.wrong[:MOST_ERRORS], evaluation.labels, evaluation.predicted
    tiles = "".join(
        f'<li class="tile" data-true="{labels[i]}" data-predicted="{predicted[i]}">'
        f"{sprite.picture(place, f'image number {i}')}"
        f"<span><b>{names[labels[i]]}</b><br>as {names[predicted[i]]}, "
        f"{_percent(float(evaluation.probabilities[i, predicted[i]]), 0)}</span></li>"
        for place, i in enumerate(wrong)
    )
    options = ['<option value="">any</option>']
    options += [f'<option value="{k}">{name}</option>' for k, name in enumerate(names)]
    some = "" if len(wrong) == total else f" These are the {len(wrong):,} most confident ones."
    return (
        f"<p>The network is wrong on {total:,} images. Bold is what an image is; below it stands "
        f"what the network says, and how sure it is. The surest errors come first.{some}</p>"
        '<form class="filter" hidden>'
        f'<label>True class <select name="true">{"".join(options)}</select></label> '
        f'<label>Taken for <select name="predicted">{"".join(options)}</select></label> '
        '<button type="reset">Show all</button></form>'
        f'<p class="count" role="status">{len(wrong):,} errors</p>'
        f'<ul class="tiles">{tiles}</ul><button type="button" class="more" hidden>More</button>'
    )


def _grad_cam(
    cam: Mapping | None, evaluation: Any, images: np.ndarray, names: Sequence[str], sprites: dict
) -> str:
    if not cam or not len(cam["indices"]):
        return ""
    indices = np.asarray(cam["indices"])
    pictures = images[indices]
    panels = (pictures, heated(pictures, cam["predicted"]), heated(pictures, cam["true"]))
    sprites["cam"] = sprite = Sprite("cam", np.stack(panels, 1).reshape(-1, *images.shape[1:]))
    layer, items = escape(str(cam["layer"])), []
    for place, i in enumerate(indices):
        label, guess = names[evaluation.labels[i]], names[evaluation.predicted[i]]
        captions = (f"image {i}: {label}", f"speaks for {guess}", f"speaks for {label}")
        shown = (label, f"for {guess}", f"for {label}")
        parts = "".join(
            f"<span>{sprite.picture(3 * place + k, captions[k])}<small>{shown[k]}</small></span>"
            for k in range(3)
        )
        items.append(f"<li>{parts}</li>")
    return (
        f"<p>Where the maps of <code>{layer}</code> speak for a class, bright is most: the image, "
        "the heat for what the network says, and the heat for what it is. Each is scaled to its own "
        f'maximum.</p><ul class="cams">{"".join(items)}</ul>'
    )


def _calibration(evaluation: Any) -> str:
    filled = [bin_ for bin_ in evaluation.bins if bin_.count]
    middle = [(bin_.low + bin_.high) / 2 for bin_ in filled]
    width = filled[0].high - filled[0].low
    bars = Series("accuracy", middle, [b.accuracy for b in filled], "first", "bars", width)
    dots = Series("confidence", [b.confidence for b in filled], [b.confidence for b in filled],
                  "second", "dots")  # fmt: skip
    even = Series("as sure as right", (0, 1), (0, 1), "quiet")
    texts = [
        f"{b.count:,} images at {b.low:.0%} to {b.high:.0%}: right {_percent(b.accuracy, 1)}, "
        f"sure {_percent(b.confidence, 1)}"
        for b in filled
    ]
    drawn = chart(
        "Reliability", (bars, even, dots), texts, x_label="probability of the predicted class",
        y_label="accuracy", percent=True, x_range=(0, 1), y_range=(0, 1),
    )  # fmt: skip
    sure = sum(b.count * b.confidence for b in filled) / len(evaluation.labels)
    kind = "less sure than it is right" if sure < evaluation.accuracy else "surer than it is right"
    return (
        f'<div class="pair">{drawn}<p>The mean confidence is {_percent(sure, 1)}, the accuracy '
        f"{_percent(evaluation.accuracy, 1)}: the network is {kind}. The expected calibration error, "
        f"how far the two lie apart bin by bin, is {_percent(evaluation.calibration_error)}.</p></div>"
    )


def _learning_rate(rates: Mapping, steps: Sequence[Any]) -> str:
    charts, rule = [], ""
    if rates.get("lrs"):
        marks = [(rates[key], f"{name} {rates[key]:.3g}") for key, name in
                 (("lr_min", "LRMIN"), ("lr_max", "LRMAX"))]  # fmt: skip
        first = max(rates["smoothed"][: len(rates["smoothed"]) // 4 + 1])
        low = min(rates["smoothed"])
        spread = (first - low) or 1
        series = (
            Series("loss of a batch", rates["lrs"], rates["losses"], "quiet", "dots"),
            Series("smoothed", rates["lrs"], rates["smoothed"], "first"),
        )
        texts = [f"rate {x:.3g}: batch {y:.3f}, smoothed {s:.3f} nats"
                 for x, y, s in zip(rates["lrs"], rates["losses"], rates["smoothed"])]  # fmt: skip
        charts.append(
            chart("Range test", series, texts, x_label="learning rate", y_label="loss, nats",
                  log_x=True, y_range=(low - 0.15 * spread, first + 0.35 * spread), marks=marks)
        )  # fmt: skip
    if steps:
        kept = [steps[i] for i in thinned(len(steps))]
        series = [Series("", [s.step for s in kept], [s.lr for s in kept])]
        texts = [f"step {s.step}: rate {s.lr:.4g}" for s in kept]
        charts.append(
            chart("Rate of each step", series, texts, x_label="step", y_label="learning rate")
        )
    if rates.get("rule"):
        rule = f"<p>{escape(str(rates['rule']))}.</p>"
    return f'<div class="pair">{"".join(charts)}</div>{rule}' if charts else rule


def _samples(
    samples: tuple | None, data: Mapping, names: Sequence[str], sprites: dict
) -> str:
    if samples is None or not len(samples[0]):
        return ""
    batch, labels = np.asarray(samples[0]).transpose(0, 2, 3, 1), samples[1]
    pixels = 255 * (batch * np.asarray(data["std"]) + np.asarray(data["mean"]))
    sprites["samples"] = sprite = Sprite("samples", pixels.round().clip(0, 255).astype(np.uint8))
    tiles = "".join(
        f'<li class="tile">{sprite.picture(i, f"sample {i}")}<span>{names[int(label)]}</span></li>'
        for i, label in enumerate(labels)
    )
    return f'<p>Training images after the transforms.</p><ul class="tiles">{tiles}</ul>'


def _facts(run: Mapping) -> str:
    recipe, data = dict(run.get("recipe") or {}), dict(run.get("data") or {})
    data["classes"] = ", ".join(map(str, data.get("classes", ())))
    groups = {"Training": recipe, "Images": data}
    lists = "".join(
        f"<div><h3>{name}</h3>{_definitions(facts)}</div>"
        for name, facts in groups.items()
        if any(facts.values())
    )
    return f'<div class="pair">{lists}</div>' if lists else ""


def _reproduce(run: Mapping, command: str) -> str:
    machine = dict(run.get("machine") or {})
    versions = machine.pop("versions", {})
    recipe = run.get("recipe") or {}
    seed = f" Its seed is {escape(str(recipe['seed']))}." if "seed" in recipe else ""
    parts = [f"<pre><code>{escape(command)}</code></pre>"] if command else []
    parts += [
        "<p>On a CPU the same seed gives the same numbers with the same machine, threads and "
        f"versions; elsewhere they differ a little.{seed}</p>",
        f'<div class="pair"><div><h3>Machine</h3>{_definitions(machine)}</div>'
        f"<div><h3>Versions</h3>{_definitions(versions)}</div></div>",
    ]
    return "".join(parts) if command or machine or versions else ""


def _definitions(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        if isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        if value is not None and value != "" and not isinstance(value, Mapping):
            name = escape(str(name).replace("_", " "))
            number = f"{value:,}" if isinstance(value, int) else str(value)
            rows.append(f"<dt>{name}</dt><dd>{escape(number)}</dd>")
    return f'<dl class="facts">{"".join(rows)}</dl>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Cells are escaped already; the first of a row names it."""
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
        "</table></div>"
    )


def _percent(share: float | None, decimals: int = 2) -> str:
    return "–" if share is None else f"{share:.{decimals}%}"


def _or_dash(value: Any) -> str:
    return "–" if value is None else str(value)
