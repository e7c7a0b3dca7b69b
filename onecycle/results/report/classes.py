"""The part of the page that shows the scores of each class and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onecycle.results.evaluation import ClassScore, Evaluation

from .words import percent, table

MOST_WITH_SHARES = 10
"""Classes of a confusion matrix that also tells the shares."""
FEW, MANY = 5, 30
"""Classes of a matrix with large cells, and with small ones."""


def classes(evaluation: Evaluation, names: Sequence[str]) -> str:
    """The scores of each class, and the confusion matrix, which leads to the errors."""
    rows = [
        _scores(f'<a href="#errors-title" data-true="{k}">{names[k]}</a>', score)
        for k, score in enumerate(evaluation.scores)
    ]
    averages = [_scores(score.name, score) for score in evaluation.class_averages]
    columns = ("class", "images", "precision", "recall", "F1")
    scores = table(columns, rows, "Each class", averages)
    pairs = "".join(
        f'<li><a href="#errors-title" data-true="{t}" data-predicted="{p}">{names[t]} → '
        f"{names[p]}</a> <b>{count}</b></li>"
        for t, p, count in _frequent(evaluation.confusion, 6)
    )
    if pairs:
        pairs = f'<h3>Most frequent errors (true → predicted)</h3><ol class="pairs">{pairs}</ol>'
    return (
        f'<div class="pair wide"><div>{scores}</div>'
        f"<div>{_matrix(evaluation.confusion, names)}{pairs}</div></div>"
    )


def _scores(name: str, score: ClassScore) -> list[str]:
    shares = (percent(value, 1) for value in (score.precision, score.recall, score.f1))
    return [name, f"{score.support:,}", *shares]


def _matrix(confusion: np.ndarray, names: Sequence[str]) -> str:
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    peak = (shares * ~np.eye(len(shares), dtype=bool)).max() or 1
    size = "few" if len(names) <= FEW else "many" if len(names) > MANY else ""
    flat = "flat" if max(map(len, names)) <= 3 else ""  # such names need not be turned
    body = "".join(
        f'<tr><th scope="row" title="{names[t]}">{names[t]}</th>'
        + "".join(_cell(t, p, count, shares[t, p], peak, names) for p, count in enumerate(row))
        + "</tr>"
        for t, row in enumerate(confusion)
    )
    heads = "".join(f'<th scope="col" title="{name}"><span>{name}</span></th>' for name in names)
    share = ", with their share of the row" if len(names) <= MOST_WITH_SHARES else ""
    return (
        '<p class="caption" id="matrix-caption">Confusion matrix: images by true class (rows) and '
        f"predicted class (columns){share}. Click a cell to see those errors.</p>"
        '<div class="scroll tall" tabindex="0" role="region" aria-label="Confusion matrix">'
        f'<table class="confusion {size} {flat}" aria-labelledby="matrix-caption">'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(t: int, p: int, count: int, share: float, peak: float, names: Sequence[str]) -> str:
    if not count:
        return "<td>·</td>"
    small = f"<small>{share:.0%}</small>" if len(names) <= MOST_WITH_SHARES else ""
    if t == p:
        return f'<td class="right" style="--tint:{share:.2f}">{count}{small}</td>'
    said = f"{count} of {names[t]} predicted as {names[p]}: show them"
    return (
        f'<td style="--tint:{share / peak:.2f}"><a href="#errors-title" data-true="{t}" '
        f'data-predicted="{p}" aria-label="{said}" title="{said}"><span>{count}{small}</span>'
        "</a></td>"
    )


def _frequent(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    off = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    cells = [(*np.unravel_index(i, off.shape), int(off.flat[i])) for i in order]
    return [cell for cell in cells if cell[2]]
