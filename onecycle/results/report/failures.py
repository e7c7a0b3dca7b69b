"""The parts of the page that show single errors, and how sure the network is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from onecycle.results.evaluation import Evaluation
from onecycle.results.grad_cam import ErrorMaps

from .charts import Axis, Series, chart
from .sprites import Sprite, heated
from .words import percent

MOST_ERRORS = 1200
"""Pictures in the gallery; more would make the file larger than about 5 MB."""


def errors(
    evaluation: Evaluation,
    names: Sequence[str],
    sprite: Sprite | None,
) -> str:
    """The gallery of errors and its filter; the name of an image's file is its tooltip."""
    total = len(evaluation.wrong)
    if sprite is None:
        return "<p>Nothing is misclassified.</p>"
    wrong, labels, predicted = (
        evaluation.wrong[:MOST_ERRORS],
        evaluation.labels,
        evaluation.predicted,
    )
    tiles = "".join(
        f'<li class="tile" data-true="{labels[i]}" data-predicted="{predicted[i]}"'
        f' title="{_called(evaluation, i)}">'
        f"{sprite.picture(place, _called(evaluation, i))}"
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


def _called(evaluation: Evaluation, i: int) -> str:
    return escape(evaluation.files[i]) if evaluation.files else f"image {evaluation.indices[i]}"


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
        called = _called(evaluation, i)
        captions = (f"{called}: {label}", f"evidence for {guess}", f"evidence for {label}")
        shown = ((label, "true class"), (guess, "predicted"), (label, "true class"))
        parts = "".join(
            f"<span>{sprite.picture(3 * place + k, captions[k])}"
            f"<small><b>{name}</b><br>{kind}</small></span>"
            for k, (name, kind) in enumerate(shown)
        )
        items.append(f'<li title="{called}">{parts}</li>')
    return (
        f"<p>Grad-CAM at <code>{layer}</code>: the image, the evidence in it for the predicted "
        "class, and the evidence for the true class. Brighter is more; each map is scaled "
        f'to its own maximum.</p><ul class="cams">{"".join(items)}</ul>'
    )


def calibration(evaluation: Evaluation) -> str:
    """How sure the network is, against how often it is right."""
    filled = [bin_ for bin_ in evaluation.shown_bins if bin_.count]
    middle = [(bin_.low + bin_.high) / 2 for bin_ in filled]
    width = filled[0].high - filled[0].low
    bars = Series("accuracy", middle, [b.accuracy for b in filled], "first", "bars", width)
    dots = Series("confidence", [b.confidence for b in filled], [b.confidence for b in filled],
                  "second", "dots")  # fmt: skip
    even = Series("perfect calibration", (0, 1), (0, 1), "quiet")
    texts = [
        f"{b.count:,} image{'' if b.count == 1 else 's'} at {b.low:.0%} to {b.high:.0%}: accuracy "
        f"{percent(b.accuracy, 1)}, mean confidence {percent(b.confidence, 1)}"
        for b in filled
    ]
    drawn = chart(
        "Confidence and accuracy", (bars, even, dots), texts,
        x=Axis("probability of the predicted class", (0, 1), "percent"),
        y=Axis("accuracy", (0, 1), "percent"),
    )  # fmt: skip
    sure = sum(b.count * b.confidence for b in filled) / len(evaluation.labels)
    gap = sure - evaluation.accuracy
    kind = "overconfident" if gap > 0 else "underconfident"
    if abs(gap) < 0.0005:  # as equal as they are written
        kind = "neither over- nor underconfident overall"
    return (
        f'<div class="pair">{drawn}<p>The mean confidence is {percent(sure, 1)}, the accuracy '
        f"{percent(evaluation.accuracy, 1)}: the network is {kind}. The expected calibration "
        f"error, the mean gap between confidence and accuracy in {len(evaluation.bins)} bins, is "
        f"{percent(evaluation.calibration_error)}.</p></div>"
    )
