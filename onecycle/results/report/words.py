"""Words of the page: shares, lists and tables, escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def percent(share: float | None, decimals: int = 2) -> str:
    """A share, 0..1, as people read it; None is a dash."""
    return "–" if share is None else f"{share:.{decimals}%}"


def kept_words(keep: str, accuracies: Sequence[float | None]) -> str:
    """Which weights a run has kept.

    Args:
        keep: of the recipe.
        accuracies: of each epoch.
    """
    epochs = len(accuracies)
    if keep == "average":
        return f"with the average of the weights after the last epoch ({epochs})"
    if keep == "best":
        best = accuracies.index(max(accuracies)) + 1
        return f"after epoch {best} of {epochs}, the best on held-out images"
    return f"after the last epoch ({epochs})"


def definitions(facts: Mapping[str, Any]) -> str:
    """Names and values as a list; a value that is None or empty is left out."""
    rows = []
    for name, value in facts.items():
        if isinstance(value, (list, tuple)):
            value = ", ".join(map(_shown, value))
        if value is not None and value != "" and not isinstance(value, Mapping):
            label, shown = escape(str(name).replace("_", " ")), escape(_shown(value))
            rows.append(f"<dt>{label}</dt><dd>{shown}</dd>")
    return f'<dl class="facts">{"".join(rows)}</dl>'


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    form = {int: ",", float: ".4g"}.get(type(value), "")
    return f"{value:{form}}"


MOST_ROWS = 25
"""Of a table that is shown whole; a longer one scrolls under its head."""


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    totals: Sequence[Sequence[str]] = (),
) -> str:
    """Cells are escaped already; the first of a row names it. ``totals`` are its last rows."""
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    tall = " tall" if len(rows) > MOST_ROWS else ""
    foot = f"<tfoot>{_rows(totals)}</tfoot>" if totals else ""
    return (
        f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{_rows(rows)}</tbody>{foot}</table></div>"
    )


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
