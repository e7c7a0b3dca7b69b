"""The parts of the page that show how the network was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from onecycle.results.figures.style import calm_span
from onecycle.results.figures.training import SAMPLES_TITLE, samples_note

from .charts import Axis, Series, chart, thinned
from .sprites import Sprite
from .words import percent, table


def curves(history: Sequence[Mapping]) -> str:
    """Accuracy and loss, epoch by epoch, as charts and as numbers."""
    if not history:
        return ""
    epochs = [row["epoch"] for row in history]
    charts = []
    for quantity, unit, kind in (("accuracy", "share of the images", "percent"),
                                  ("loss", "cross-entropy, nats", "plain")):  # fmt: skip
        write = percent if kind == "percent" else lambda v: "–" if v is None else f"{v:.4f}"
        series = [
            Series(split, epochs, [row[f"{split}_{quantity}"] for row in history], style)
            for split, style in (("test", "second"), ("train", "first"))
        ]
        series = [s for s in series if any(y is not None for y in s.y)]
        texts = [
            f"epoch {epoch}: " + ", ".join(f"{s.name} {write(s.y[i])}" for s in series)
            for i, epoch in enumerate(epochs)
        ]
        span = calm_span([s.y for s in series]) if quantity == "loss" else None
        y = Axis(unit, span and (max(span[0], 0.0), span[1]), kind)
        charts.append(chart(quantity.capitalize(), series, texts, x=Axis("epoch"), y=y))
    columns = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    rows = [[_cell(name, row[name]) for name in columns] for row in history]
    numbers = table([c.replace("_", " ") for c in columns], rows, "Every epoch")
    return (
        f'<div class="pair">{"".join(charts)}</div>'
        f"<details><summary>The numbers</summary>{numbers}</details>"
    )


def learning_rate(rates: Mapping, steps: Sequence[Any]) -> str:
    """The range test and the learning rate of each step."""
    charts, rule = [], ""
    if rates.get("lrs"):
        marks = [(rates[key], f"{name} {rates[key]:.3g}") for key, name in
                 (("lr_min", "LRMIN"), ("lr_max", "LRMAX"))]  # fmt: skip
        first = max(rates["smoothed"][: len(rates["smoothed"]) // 4 + 1])
        low = min(rates["smoothed"])
        spread = (first - low) or 1
        shown = rates["lrs"][0], rates["lrs"][-1]
        series = (
            Series("loss", rates["lrs"], rates["losses"], "quiet", "dots"),
            Series("smoothed", rates["lrs"], rates["smoothed"]),
        )
        texts = [f"learning rate {x:.3g}: loss {y:.3f}, smoothed {s:.3f} nats"
                 for x, y, s in zip(rates["lrs"], rates["losses"], rates["smoothed"])]  # fmt: skip
        charts.append(
            chart("Range test", series, texts, x=Axis("learning rate", shown, "log"),
                  y=Axis("loss, nats", (low - 0.15 * spread, first + 0.35 * spread)), marks=marks)
        )  # fmt: skip
    if steps:
        kept = [steps[i] for i in thinned(len(steps))]
        series = [Series("", [s.step for s in kept], [s.lr for s in kept])]
        texts = [f"step {s.step}: learning rate {s.lr:.4g}" for s in kept]
        charts.append(
            chart("Learning rate of each step", series, texts,
                  x=Axis("step"), y=Axis("learning rate"))
        )  # fmt: skip
    if rates.get("rule"):
        rule = f"<p>{escape(str(rates['rule']))}.</p>"
    return f'<div class="pair">{"".join(charts)}</div>{rule}' if charts else rule


def samples_part(samples: tuple | None, about: Mapping, names: Sequence[str], sprites: dict) -> str:
    """Training images as the network saw them; their sprite is added to ``sprites``."""
    if samples is None or not len(samples[0]):
        return ""
    data = about["data"]
    note = samples_note(about.get("recipe") or {}, data.get("augmentation"))
    batch, labels = np.asarray(samples[0]).transpose(0, 2, 3, 1), samples[1]
    pixels = 255 * (batch * np.asarray(data["std"]) + np.asarray(data["mean"]))
    sprites["samples"] = sprite = Sprite("samples", pixels.round().clip(0, 255).astype(np.uint8))
    tiles = "".join(
        f'<li class="tile">{sprite.picture(i, f"sample {i}")}<span>{names[int(label)]}</span></li>'
        for i, label in enumerate(labels)
    )
    return f'<p>{SAMPLES_TITLE}. {note}</p><ul class="tiles">{tiles}</ul>'


def _cell(name: str, value: Any) -> str:
    if name.endswith("accuracy"):
        return percent(value)
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
