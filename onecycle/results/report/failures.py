"""The parts of the page that show where the network fails."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from onecycle.results.evaluation import Evaluation
from onecycle.results.grad_cam import ErrorMaps

from .charts import Axis, Series, chart
from .sprites import Sprite, heated
from .words import percent, table

MOST_ERRORS = 1200
"""Pictures in the gallery; more would make the file larger than about 5 MB."""


def classes(evaluation: Evaluation, names: Sequence[str]) -> str:
    """The scores of each class, and the confusion matrix, which leads to the errors."""
    rows = [
        [f'<a href="#errors-title" data-true="{k}">{names[k]}</a>', f"{score.support:,}",
         *(percent(value, 1) for value in (score.precision, score.recall, score.f1))]
        for k, score in enumerate(evaluation.scores)
    ]  # fmt: skip
    scores = table(("class", "images", "precision", "recall", "F1"), rows, "Each class")
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
                said = f"{count} of {names[t]} predicted as {names[p]}: show them"
                cells.append(
                    f'<td style="{tint}"><a href="#errors-title" data-true="{t}" data-predicted="{p}" '
                    f'aria-label="{said}" title="{said}">{count}</a></td>'
                )
            else:
                cells.append("<td>·</td>")
        body.append(f'<tr><th scope="row">{names[t]}</th>{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
    pairs = "".join(
        f'<li><a href="#errors-title" data-true="{t}" data-predicted="{p}">{names[t]} predicted as '
        f"{names[p]}</a> <b>{count}</b></li>"
        for t, p, count in _frequent(confusion, 6)
    )
    return (
        f'<div class="pair wide"><div>{scores}</div><div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">'
        '<table class="confusion"><caption>Confusion matrix: rows are true classes, columns '
        "predicted classes. Click a cell to see those errors.</caption>"
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        + (f'<h3>Most frequent errors</h3><ol class="pairs">{pairs}</ol>' if pairs else "")
        + "</div></div>"
    )


def _frequent(confusion: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    off = confusion * ~np.eye(len(confusion), dtype=bool)
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    cells = [(*np.unravel_index(i, off.shape), int(off.flat[i])) for i in order]
    return [cell for cell in cells if cell[2]]


def errors(evaluation: Evaluation, names: Sequence[str], sprite: Sprite | None) -> str:
    """The gallery of errors and its filter."""
    total = len(evaluation.wrong)
    if sprite is None:
        return "<p>Nothing is misclassified.</p>"
    wrong, labels, predicted = (
        evaluation.wrong[:MOST_ERRORS],
        evaluation.labels,
        evaluation.predicted,
    )
    tiles = "".join(
        f'<li class="tile" data-true="{labels[i]}" data-predicted="{predicted[i]}">'
        f"{sprite.picture(place, f'image number {evaluation.indices[i]}')}"
        f"<span><b>{names[labels[i]]}</b><br>as {names[predicted[i]]}, "
        f"{percent(float(evaluation.probabilities[i, predicted[i]]), 0)}</span></li>"
        for place, i in enumerate(wrong)
    )
    options = ['<option value="">any</option>']
    options += [f'<option value="{k}">{name}</option>' for k, name in enumerate(names)]
    some = "" if len(wrong) == total else f" These are the {len(wrong):,} most confident ones."
    return (
        f"<p>The network is wrong on {total:,} image{'' if total == 1 else 's'}. The true class is "
        "in bold; below it are the predicted class and its probability. The most confident errors "
        f"come first.{some}</p>"
        f'<form class="filter" data-total="{total}" hidden>'
        f'<label>True class <select name="true">{"".join(options)}</select></label> '
        f'<label>Predicted as <select name="predicted">{"".join(options)}</select></label> '
        '<button type="reset">Show all</button></form>'
        f'<p class="count" role="status">{len(wrong):,} error{"" if len(wrong) == 1 else "s"}</p>'
        f'<ul class="tiles">{tiles}</ul><button type="button" class="more" hidden>More</button>'
    )


def grad_cam_part(
    maps: ErrorMaps | None,
    evaluation: Evaluation,
    images: np.ndarray,
    names: Sequence[str],
    sprites: dict,
) -> str:
    """Errors with the heat of both classes; their sprite is added to ``sprites``."""
    if maps is None or not len(maps.indices):
        return ""
    indices = maps.indices
    pictures = images[indices]
    panels = (pictures, heated(pictures, maps.predicted), heated(pictures, maps.true))
    sprites["cam"] = sprite = Sprite("cam", np.stack(panels, 1).reshape(-1, *images.shape[1:]))
    layer, items = escape(maps.layer), []
    for place, i in enumerate(indices):
        label, guess = names[evaluation.labels[i]], names[evaluation.predicted[i]]
        number = evaluation.indices[i]
        captions = (f"image {number}: {label}", f"evidence for {guess}", f"evidence for {label}")
        shown = (label, f"for {guess}", f"for {label}")
        parts = "".join(
            f"<span>{sprite.picture(3 * place + k, captions[k])}<small>{shown[k]}</small></span>"
            for k in range(3)
        )
        items.append(f"<li>{parts}</li>")
    return (
        f"<p>Grad-CAM at <code>{layer}</code>: the image, the evidence for the predicted class, and "
        "the evidence for the true class. Brighter is more; each map is scaled to its own maximum."
        f'</p><ul class="cams">{"".join(items)}</ul>'
    )


def calibration(evaluation: Evaluation) -> str:
    """How sure the network is, against how often it is right."""
    filled = [bin_ for bin_ in evaluation.bins if bin_.count]
    middle = [(bin_.low + bin_.high) / 2 for bin_ in filled]
    width = filled[0].high - filled[0].low
    bars = Series("accuracy", middle, [b.accuracy for b in filled], "first", "bars", width)
    dots = Series("confidence", [b.confidence for b in filled], [b.confidence for b in filled],
                  "second", "dots")  # fmt: skip
    even = Series("perfect calibration", (0, 1), (0, 1), "quiet")
    texts = [
        f"{b.count:,} images at {b.low:.0%} to {b.high:.0%}: accuracy "
        f"{percent(b.accuracy, 1)}, mean confidence {percent(b.confidence, 1)}"
        for b in filled
    ]
    drawn = chart(
        "Reliability", (bars, even, dots), texts,
        x=Axis("probability of the predicted class", (0, 1), "percent"), y=Axis("accuracy", (0, 1), "percent"),
    )  # fmt: skip
    sure = sum(b.count * b.confidence for b in filled) / len(evaluation.labels)
    gap = sure - evaluation.accuracy
    kind = "overconfident" if gap > 0 else "underconfident"
    if abs(gap) < 0.0005:  # as equal as they are written
        kind = "neither over- nor underconfident overall"
    return (
        f'<div class="pair">{drawn}<p>The mean confidence is {percent(sure, 1)}, the accuracy '
        f"{percent(evaluation.accuracy, 1)}: the network is {kind}. The expected calibration error, "
        f"the mean gap between the two over all bins, is {percent(evaluation.calibration_error)}.</p></div>"
    )
