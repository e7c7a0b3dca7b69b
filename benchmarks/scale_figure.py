"""The figure of ``scale.py``: each axis in its own frame, both axes logarithmic."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.tables import SCALE_COLUMNS, machine_of
from onecycle.results.figures.style import (
    LABEL_SIZE,
    NOTE_SIZE,
    TEST_COLOUR,
    TRAIN_COLOUR,
    new_figure,
    own_style,
)

SHOWN = {
    "images": ("images_per_s", "memory_bytes"),
    "image_size": ("images_per_s", "memory_bytes"),
    "classes": ("images_per_s", "memory_bytes"),
    "processes": ("images_per_s",),
    "errors": ("seconds", "report_bytes"),
}
NAMES = {"image_size": "image size in pixels", "errors": "images evaluated"}


def draw_scale(result: dict[str, Any]) -> Figure:
    """One row for each axis; on the left what time it takes, on the right what room."""
    axes_of = [axis for axis in SHOWN if sum(run["axis"] == axis for run in result["runs"]) > 1]
    with own_style():
        figure = new_figure(
            "How time and room grow", machine_of(result), 9, 0.6 + 2.3 * len(axes_of)
        )
        grid = figure.subplots(len(axes_of), 2, squeeze=False)
        for axis, row in zip(axes_of, grid):
            own = [run for run in result["runs"] if run["axis"] == axis]
            for place, colour, name in zip(row, (TRAIN_COLOUR, TEST_COLOUR), (*SHOWN[axis], None)):
                if name is None:
                    place.set_axis_off()
                    continue
                label, unit, _ = SCALE_COLUMNS[name]
                values = [run["value"] for run in own]
                heights = [run[name] * unit for run in own]
                place.loglog(values, heights, "o-", color=colour)
                place.set_xticks(values, [f"{value:,}" for value in values], minor=False)
                place.set_xlabel(NAMES.get(axis, axis), fontsize=LABEL_SIZE)
                place.set_ylabel(label, fontsize=LABEL_SIZE)
                place.set_ylim(min(heights) / 2, 2 * max(heights))
                place.xaxis.set_minor_formatter(NullFormatter())
                for formatter in (place.yaxis.set_major_formatter, place.yaxis.set_minor_formatter):
                    formatter(FuncFormatter(lambda value, _: ""))
                for value, height in zip(values, heights):
                    place.annotate(
                        f"{height:,.3g}" if height < 1000 else f"{height:,.0f}", (value, height),
                        xytext=(0, 6), textcoords="offset points", ha="center", fontsize=NOTE_SIZE,
                    )  # fmt: skip
                place.margins(x=0.12)
                if slope := result["summary"].get(axis, {}).get(name):
                    place.set_title(
                        f"slope at the end {slope['slope']:+.2f}", fontsize=NOTE_SIZE, loc="right"
                    )
    return figure
