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


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
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
