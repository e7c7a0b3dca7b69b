"""Charts of a page: lines in an inline SVG that stretches, words beside it that do not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import MaxNLocator

MOST_POINTS = 400
"""Of a line: more than a screen can show would only weigh."""


@dataclass(frozen=True, slots=True)
class Series:
    """What a chart draws.

    ``style`` is only, first (dashed), second or quiet; ``kind`` is line, dots or bars.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: str = "only"
    kind: str = "line"
    width: float = 0.0
    """Of a bar, in units of x."""


def chart(
    title: str,
    series: Sequence[Series],
    readouts: Sequence[str],
    *,
    x_label: str,
    y_label: str,
    percent: bool = False,
    log_x: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """A chart whose values are told where a pointer or the arrow keys are.

    Args:
        title: plain text.
        series: drawn in this order; the first one's x are the places of the readouts.
        readouts: one a point of the first series, plain text.
        x_label: with its unit.
        y_label: with its unit.
        percent: y is 0..1 and written as a percentage.
        log_x: x is above 0, on a logarithmic axis.
        x_range: what is shown, or None for all.
        y_range: what is shown, or None for all.
        marks: x and name of upright lines.
    """
    scale = math.log10 if log_x else float
    values = [y for s in series for y in s.y if _is_number(y)]
    if not values or not series[0].x:
        return f'<figure class="chart"><figcaption><b>{escape(title)}</b> no data</figcaption></figure>'
    low, high = x_range or (min(map(min, (s.x for s in series))), max(s.x[-1] for s in series))
    low, high = scale(low), scale(high)
    is_single = low == high
    if is_single:
        low, high = low - 0.5, high + 0.5
    bottom, top = y_range or (min(values), max(values))
    if is_single or bottom == top:  # not on the frame, and ticks that differ
        pad = (top - bottom) / 4 or abs(top) / 10 or 1.0
        bottom, top = bottom - pad, top + pad
    y_ticks = [
        float(tick) for tick in MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)).tick_values(bottom, top)
    ]
    bottom, top = y_range or (y_ticks[0], y_ticks[-1])
    if percent:  # the ticks beyond are round numbers, but no shares
        bottom, top = max(bottom, 0.0), min(top, 1.0)

    def left(x: float) -> float:
        return round(100 * (scale(x) - low) / (high - low), 2)

    def up(y: float) -> float:
        return round(min(max(100 * (y - bottom) / (top - bottom), -5), 105), 2)

    if is_single:
        x_ticks = [(series[0].x[0], f"{series[0].x[0]:g}")]
    elif log_x:
        powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        x_ticks = [(10.0**power, f"{10.0**power:g}") for power in powers]
    else:
        whole = all(isinstance(x, int) for x in series[0].x)
        ticks = MaxNLocator(6, integer=whole).tick_values(low, high)
        x_ticks = [(float(t), f"{t:g}") for t in ticks if low - 1e-9 <= t <= high + 1e-9]
    y_text = (lambda y: f"{100 * y:.6g}%") if percent else (lambda y: f"{y:.4g}")
    inside = [y for y in y_ticks if bottom - 1e-9 <= y <= top + 1e-9]

    drawing = [f'<path class="grid" d="M0 {100 - up(y):g}H100"/>' for y in inside]
    drawing += [_drawn(s, left, up) for s in series]
    drawing += [f'<path class="mark" d="M{left(x):g} 0V100"/>' for x, _ in marks]
    words = [f'<span class="yt" style="bottom:{up(y):g}%">{y_text(y)}</span>' for y in inside]
    words += [f'<span class="xt" style="left:{left(x):g}%">{text}</span>' for x, text in x_ticks]
    for x, name in marks:
        side = "flip" if left(x) > 50 else ""
        words.append(f'<span class="mt {side}" style="left:{left(x):g}%">{escape(name)}</span>')
    keys = [
        f'<span class="key"><svg viewBox="0 0 22 8" aria-hidden="true">{_sample(s)}</svg>'
        f"{escape(s.name)}</span>"
        for s in series
        if s.name
    ]
    points = [
        [left(x), text, [up(s.y[i]) for s in series if i < len(s.y) and _is_number(s.y[i])]]
        for i, (x, text) in enumerate(zip(series[0].x, readouts))
    ]
    start = len(points) - 1
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b> {" ".join(keys)}</figcaption>'
        f'<p class="axis">{escape(y_label)}</p>'
        f'<div class="plot" tabindex="0" role="slider" aria-label="{escape(title)}, by '
        f'{escape(x_label)}" aria-valuemin="0" aria-valuemax="{start}" aria-valuenow="{start}" '
        f'aria-valuetext="{escape(points[start][1])}" '
        f'data-points="{escape(json.dumps(points, separators=(",", ":")))}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(drawing)}</svg>{''.join(words)}</div>"
        f'<p class="axis x">{escape(x_label)}</p>'
        f'<p class="readout" aria-hidden="true"></p></figure>'
    )


def thinned(count: int) -> list[int]:
    """Indices of at most ``MOST_POINTS`` of ``count`` points, first and last among them."""
    if count <= MOST_POINTS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})


def _drawn(series: Series, left, up) -> str:
    places = [(left(x), up(y)) for x, y in zip(series.x, series.y) if _is_number(y)]
    if series.kind == "bars":
        return "".join(
            f'<rect class="bar {series.style}" x="{left(x - series.width / 2):g}" '
            f'y="{100 - up(y):g}" width="{left(x + series.width / 2) - left(x - series.width / 2):g}" '
            f'height="{up(y):g}"/>'
            for x, y in zip(series.x, series.y)
            if _is_number(y)
        )
    kind = "dots" if len(places) == 1 else series.kind  # a line of one point shows nothing
    if kind == "dots":
        path = "".join(f"M{x:g} {100 - y:g}h0" for x, y in places)
    else:
        path = "M" + "L".join(f"{x:g} {100 - y:g}" for x, y in places)
    return f'<path class="{kind} {series.style}" d="{path}"/>'


def _sample(series: Series) -> str:
    if series.kind == "bars":
        return f'<rect class="bar {series.style}" x="6" width="10" height="8"/>'
    path = "M11 4h0" if series.kind == "dots" else "M1 4H21"
    return f'<path class="{series.kind} {series.style}" d="{path}"/>'


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
