"""The tables of the page that compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from onecycle.results.report.words import date, percent, seconds, shown, table

from .chance import wilson_interval
from .curves import named
from .runs import FinishedRun, ImageError


def overview(runs: Sequence[FinishedRun], links: Sequence[str | None]) -> str:
    """What each run is, and its accuracy with the interval in which it can lie."""
    bounds = [wilson_interval(run.images - run.wrong, run.images) for run in runs]
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)

    def place(value: float) -> str:
        return f"{100 * (value - low) / (high - low or 1):.1f}%"

    rows = []
    for number, (run, link, (least, most)) in enumerate(zip(runs, links, bounds, strict=True)):
        about = run.about
        drawn = (
            f'<span class="interval" aria-hidden="true"><i style="left:{place(least)};'
            f'right:calc(100% - {place(most)})"></i><b style="left:{place(run.accuracy)}"></b>'
            "</span>"
        )
        parameters = about["parameters"]
        rows.append([
            named(number, run, link), f"<b>{percent(run.accuracy)}</b>",
            f"{percent(least)} to {percent(most)}", drawn, f"{run.loss:.4f}", f"{run.lr_max:.4g}",
            "–" if parameters is None else f"{parameters:,}", seconds(about["seconds"]),
            escape(date(about["date"])),
        ])  # fmt: skip
    columns = ("run", "accuracy", "95 % interval", "", "loss, nats", "LRMAX", "parameters",
               "training", "begun")  # fmt: skip
    return table(columns, rows, "The trained networks") + (
        "<p>The interval (Wilson) is where the accuracy on all images of this kind lies, as far as "
        "this number of images tells.</p>"
    )


def settings(runs: Sequence[FinishedRun]) -> str:
    """What differs in recipe, parts, images and machine."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = []
    for name in names:
        values = [run.settings.get(name) for run in runs]
        if any(value != values[0] for value in values):
            texts = [_text(value) for value in values]
            if len(set(texts)) == 1:  # they differ in what is not shown
                texts = [str(value) for value in values]
            rows.append([_wrapped(name.replace("_", " ")), *map(escape, texts)])
    if not rows:
        return "<p>Recipe, parts, images, machine and code are the same.</p>"
    columns = ("setting", *(run.label for run in runs))
    return f'<div class="many">{table(columns, rows, "Only what differs")}</div>'


def _wrapped(text: str) -> str:
    return f'<span class="run">{escape(text)}</span>'


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value[:3])) + (f", … ({len(value)})" if len(value) > 3 else "")
    return "–" if value is None or value == "" else shown(value)


def classes(runs: Sequence[FinishedRun]) -> str:
    """The accuracy of each class in each run; the best of a row is bold if they differ."""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.classes):
        found = [run.classes.get(name, (None, 0)) for run in runs]
        shares = [share for share, _ in found if share is not None]
        best = max(shares) if len(set(shares)) > 1 else None
        cells = [
            f"<b>{percent(share, 1)}</b>"
            if best is not None and share == best
            else percent(share, 1)
            for share, _ in found
        ]
        counts = sorted({count for _, count in found})
        images = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        rows.append([_wrapped(name), images, *cells])
    columns = ("class", "images", *(run.label for run in runs))
    return f'<div class="many">{table(columns, rows, "Accuracy of each class (recall)")}</div>'


def image_list(errors: Sequence[ImageError], caption: str, most: int) -> str:
    """The first ``most`` misclassified images and the number of the rest; the caption is HTML."""
    if not errors:
        return f'<p class="axis">{caption}: none</p>'
    rows = [[*map(_wrapped, error[:3]), percent(error.probability, 0)] for error in errors[:most]]
    rest = len(errors) - len(rows)
    more = f"<p>and {rest:,} more</p>" if rest else ""
    columns = ("image", "true class", "predicted as", "probability")
    return f'<div class="names">{table(columns, rows, f"{caption}: {len(errors):,}")}</div>{more}'
