"""Charts of a page: lines in an inline SVG that stretches, words beside it that do not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import MaxNLocator

from onecycle.results.figures.style import brief, whole_ticks

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


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows. ``kind`` is plain, percent (0..1) or log (above 0, only x)."""

    label: str
    """With its unit."""
    span: tuple[float, float] | None = None
    """What is shown; None for all."""
    kind: str = "plain"


@dataclass(frozen=True, slots=True)
class _Scales:
    """Places in a chart, 0..100 from the left and from below, and its ticks with their texts."""

    scale: Callable[[float], float]
    low: float
    high: float
    bottom: float
    top: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]

    def left(self, x: float) -> float:
        return round(100 * (self.scale(x) - self.low) / (self.high - self.low), 2)

    def up(self, y: float) -> float:
        return round(min(max(100 * (y - self.bottom) / (self.top - self.bottom), -5), 105), 2)


def chart(
    title: str,
    series: Sequence[Series],
    readouts: Sequence[str],
    *,
    x: Axis,
    y: Axis,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """A chart whose values are told where a pointer or the arrow keys are.

    Args:
        title: plain text.
        series: drawn in this order; the first one's x are the places of the readouts.
        readouts: one per point of the first series, plain text.
        x: the horizontal axis.
        y: the vertical axis.
        marks: x and name of upright lines.
    """
    if not series[0].x or not any(_is_number(value) for s in series for value in s.y):
        return f'<figure class="chart"><figcaption><b>{escape(title)}</b> no data</figcaption></figure>'
    to = _scales(series, x, y)
    keys = [
        f'<span class="key"><svg viewBox="0 0 22 8" aria-hidden="true">{_sample(s)}</svg>'
        f"{escape(s.name)}</span>"
        for s in series
        if s.name
    ]
    points = [
        [to.left(place), text,
         [to.up(s.y[i]) for s in series if i < len(s.y) and _is_number(s.y[i])]]
        for i, (place, text) in enumerate(zip(series[0].x, readouts))
    ]  # fmt: skip
    start = len(points) - 1
    words = _words(to, [*_inside(marks, to), *_above(series, to)])
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b> {" ".join(keys)}</figcaption>'
        f'<p class="axis">{escape(y.label)}</p>'
        f'<div class="plot" tabindex="0" role="slider" aria-label="{escape(title)}, by '
        f'{escape(x.label)}" aria-valuemin="0" aria-valuemax="{start}" aria-valuenow="{start}" '
        f'aria-valuetext="{escape(points[start][1])}" '
        f'data-points="{escape(json.dumps(points, separators=(",", ":")))}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f"{_drawing(series, to, marks)}</svg>{words}</div>"
        f'<p class="axis x">{escape(x.label)}</p>'
        f'<p class="readout" aria-hidden="true"></p></figure>'
    )


def _scales(series: Sequence[Series], x: Axis, y: Axis) -> _Scales:
    scale = math.log10 if x.kind == "log" else float
    values = [value for s in series for value in s.y if _is_number(value)]
    low, high = x.span or (min(map(min, (s.x for s in series))), max(s.x[-1] for s in series))
    low, high = scale(low), scale(high)
    is_single = low == high
    if is_single:
        low, high = low - 0.5, high + 0.5
    bottom, top = y.span or (min(values), max(values))
    if is_single or bottom == top:  # not on the frame, and ticks that differ
        pad = (top - bottom) / 4 or abs(top) / 10 or 1.0
        bottom, top = bottom - pad, top + pad
    ticks = MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)).tick_values(bottom, top)
    y_ticks = [float(tick) for tick in ticks]
    bottom, top = y.span or (y_ticks[0], y_ticks[-1])
    if y.kind == "percent":  # the ticks beyond are round numbers, but no shares
        bottom, top = max(bottom, 0.0), min(top, 1.0)
    if is_single:
        x_ticks = [(series[0].x[0], f"{series[0].x[0]:g}")]
    elif x.kind == "log":
        powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        x_ticks = [(10.0**power, f"{10.0**power:g}") for power in powers]
    else:
        if all(isinstance(place, int) for place in series[0].x):
            ticks = whole_ticks(int(low), int(high))
        else:
            ticks = MaxNLocator(6).tick_values(low, high)
        text = _text_of(x, "g")
        x_ticks = [(float(t), text(t)) for t in ticks if low - 1e-9 <= t <= high + 1e-9]
    text = _text_of(y, ".4g")
    y_ticks = [(t, text(t)) for t in y_ticks if bottom - 1e-9 <= t <= top + 1e-9]
    return _Scales(scale, low, high, bottom, top, x_ticks, y_ticks)


def _text_of(axis: Axis, form: str) -> Callable[[float], str]:
    return (lambda t: f"{100 * t:.6g}%") if axis.kind == "percent" else (lambda t: f"{t:{form}}")


def _drawing(series: Sequence[Series], to: _Scales, marks: Sequence[tuple[float, str]]) -> str:
    parts = [f'<path class="grid" d="M0 {100 - to.up(tick):g}H100"/>' for tick, _ in to.y_ticks]
    parts += [_drawn(s, to.left, to.up) for s in series]
    parts += [
        f'<path class="mark" d="M{to.left(place):g} 0V100"/>'
        for place, _ in marks
        if 0 <= to.left(place) <= 100
    ]
    return "".join(parts)


def _inside(marks: Sequence[tuple[float, str]], to: _Scales) -> list[tuple[float, str]]:
    """Names of upright lines at their places, those beyond an end there with an arrow."""
    places = [(to.left(place), name) for place, name in marks]
    arrow = lambda left: "← " if left < 0 else "→ " if left > 100 else ""  # noqa: E731
    return [(min(max(left, 0.0), 100.0), arrow(left) + name) for left, name in places]


def _above(series: Sequence[Series], to: _Scales) -> list[tuple[float, str]]:
    """Where a line leaves the chart at its top, with its highest value up there."""
    words = []
    for s in series:
        above = [(x, y) for x, y in zip(s.x, s.y) if _is_number(y) and y > to.top]
        if above and s.kind == "line":
            highest = brief(max(y for _, y in above))
            words.append((to.left(above[0][0]), f"{s.name} ↑ up to {highest}"))
    return words


def _words(to: _Scales, marks: Sequence[tuple[float, str]]) -> str:
    """Ticks and names as elements; a mark is how far from the left, 0..100, and its name."""
    words = [
        f'<span class="yt" style="bottom:{to.up(tick):g}%">{text}</span>'
        for tick, text in to.y_ticks
    ]
    words += [
        f'<span class="xt" style="left:{to.left(tick):g}%">{text}</span>'
        for tick, text in to.x_ticks
    ]
    for left, name in marks:
        side = "flip" if left > 50 else ""
        words.append(f'<span class="mt {side}" style="left:{left:g}%">{escape(name)}</span>')
    return "".join(words)


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
