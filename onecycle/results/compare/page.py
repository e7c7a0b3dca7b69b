"""The page that shows finished runs side by side: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from onecycle.results.report.page import write_page
from onecycle.results.report.words import table

from . import tables
from .curves import curves, named
from .runs import FinishedRun, Pair, pair, read_runs

MOST_IMAGES = 50
"""Of a list of images."""


def compare(
    folders: Sequence[str | os.PathLike], *, out_dir: str | os.PathLike | None = None
) -> str:
    """A page that shows finished runs side by side.

    It has their accuracies with intervals, what differs in their settings, their curves, whether a
    difference from the first run can be chance, their classes, and the images that one run has
    right and another wrong.

    Args:
        folders: of two or more finished runs; the others are compared with the first.
        out_dir: where the page will be; it links to the runs' reports from there. None: no links.

    Returns:
        The HTML; it asks for nothing over a network.

    Raises:
        CheckpointError: a folder holds no finished run, or is not whole.
        UsageError: a folder is named twice, or there are fewer than two.
    """
    runs = read_runs([Path(folder) for folder in folders])
    pairs = [pair(runs[0], other) for other in runs[1:]]
    links = [None if out_dir is None else _link(run.folder, Path(out_dir)) for run in runs]
    sections = {
        "Runs": tables.overview(runs, links),
        "Difference": _difference(runs, pairs),
        "Settings": tables.settings(runs),
        "Curves": curves(runs),
        "Classes": tables.classes(runs),
        "Images": _images(runs, pairs),
    }
    sources = dict.fromkeys(str(run.source[0]) for run in runs)
    names = [run.label for run in runs]
    title = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if names[2:] else "")
    counts = dict.fromkeys(f"{run.images:,} {run.source[1]}" for run in runs)
    header = (
        f'<header><p class="eyebrow">{escape(", ".join(sources))}</p>'
        f"<h1>{len(runs)} runs compared</h1>"
        f'<p class="origin">{escape(title)} · evaluated on {escape(", ".join(counts))}</p></header>'
    )
    style = (Path(__file__).with_name("compare.css")).read_text("utf-8")
    return write_page(f"Compared: {title}", header, sections, style=style, kind="compare")


def _link(folder: Path, out_dir: Path) -> str | None:
    if not (folder / "report.html").exists():
        return None
    report = os.path.join(os.path.realpath(folder), "report.html")
    relative = Path(os.path.relpath(report, os.path.realpath(out_dir)))
    return quote(relative.as_posix(), errors="surrogateescape")


def _difference(runs: Sequence[FinishedRun], pairs: Sequence[Pair | str]) -> str:
    first, rows, reasons = runs[0], [], []
    for place, (other, found) in enumerate(zip(runs[1:], pairs, strict=True), 1):
        if isinstance(found, str):
            reasons.append(f"<p class='note'>{escape(found)}: there is no test.</p>")
            continue
        said = "can be chance" if found.p_value >= 0.05 else "is unlikely to be chance"
        rows.append([
            named(place, other),
            f"{100 * (other.accuracy - first.accuracy):+.2f}",
            f"{len(found.only_second):,}", f"{len(found.only_first):,}",
            f"{found.p_value:.2g}" if found.p_value >= 1e-4 else "&lt; 0.0001", said,
        ])  # fmt: skip
    if not rows:
        return "".join(reasons)
    name = escape(first.label)
    many = (
        f" Each test stands alone: with {len(rows)} of them, one in twenty is below 0.05 by chance."
        if len(rows) > 2
        else ""
    )
    columns = ("run", "accuracy, points", "right only here", "right only in the first", "p",
               "the difference")  # fmt: skip
    return (
        f"<p>Each run against <b>{name}</b> on the same images. p is from McNemar's exact test: "
        "how often two equally good networks would differ as much on these images. It does not say "
        f"how much another seed would change.{many}</p>"
        + table(columns, rows, "Differences from the first run")
        + "".join(reasons)
    )


def _images(runs: Sequence[FinishedRun], pairs: Sequence[Pair | str]) -> str:
    first, parts = escape(runs[0].label), []
    for other, found in zip(runs[1:], pairs, strict=True):
        if isinstance(found, str):
            continue
        name = escape(other.label)
        captions = {
            f"Right in {name}, wrong in {first}": found.only_second,
            f"Right in {first}, wrong in {name}": found.only_first,
        }
        lists = "".join(
            f"<div>{tables.image_list(errors, caption, MOST_IMAGES)}</div>"
            for caption, errors in captions.items()
        )
        shown = " open" if len(runs) == 2 else ""
        parts.append(
            f"<details{shown}><summary>{name}: {len(found.only_second):,} right that {first} has "
            f'wrong, {len(found.only_first):,} wrong that it has right</summary><div class="pair">'
            f"{lists}</div></details>"
        )
    said = "<p>The most confident errors come first. errors.csv of a run has all of its errors.</p>"
    return f"{said}{''.join(parts)}" if parts else ""
