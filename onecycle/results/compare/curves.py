"""The curves of several runs on one frame."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from onecycle.results.report.charts import Axis, Series, chart, thinned
from onecycle.results.report.words import percent

from .runs import FinishedRun

NUM_STYLES = 18
"""Kinds of lines that compare.css has: six colours, each whole, dashed and dotted."""
_CHARTS = {
    "test_accuracy": ("Test accuracy", "share of the images", "percent"),
    "train_accuracy": ("Training accuracy", "share of the images", "percent"),
    "test_loss": ("Test loss", "cross-entropy, nats", "plain"),
    "train_loss": ("Training loss", "cross-entropy, nats", "plain"),
    "lr": ("Learning rate at the end of each epoch", "learning rate", "plain"),
}


def style(place: int) -> str:
    """The kind of line of the run at a place of the page, from 0."""
    return f"run-{place % NUM_STYLES}"


def named(place: int, run: FinishedRun, link: str | None = None) -> str:
    """A run's label beside a piece of its line."""
    label = escape(run.label)
    label = f'<a href="{escape(link)}">{label}</a>' if link else label
    return (
        '<span class="run"><svg class="line" viewBox="0 0 22 8" aria-hidden="true">'
        f'<path class="{style(place)}" d="M1 4H21"/></svg><span>{label}</span></span>'
    )


def curves(runs: Sequence[FinishedRun]) -> str:
    """Accuracy, loss and learning rate of all runs, epoch by epoch; they may differ in length."""
    longest = max(len(run.curves["lr"]) for run in runs)
    epochs = [index + 1 for index in thinned(longest)]
    charts = []
    for key, (title, unit, kind) in _CHARTS.items():
        write = percent if kind == "percent" else lambda value: f"{value:.4g}"
        series, said = [], [[] for _ in epochs]
        for place, run in enumerate(runs):
            values = run.curves[key]
            shown = [values[epoch - 1] if epoch <= len(values) else None for epoch in epochs]
            if any(value is not None for value in shown):
                series.append(Series("", epochs, shown, style(place)))  # named above all charts
            for words, value in zip(said, shown, strict=True):
                words += [] if value is None else [f"{run.label} {write(value)}"]
        if series:
            texts = [
                f"epoch {n}: {', '.join(words)}" for n, words in zip(epochs, said, strict=True)
            ]
            charts.append(chart(title, series, texts, x=Axis("epoch"), y=Axis(unit, kind=kind)))
    names = "".join(f"<li>{named(place, run)}</li>" for place, run in enumerate(runs))
    return f'<ul class="legend">{names}</ul><div class="pair">{"".join(charts)}</div>'
