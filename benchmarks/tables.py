"""A table of each benchmark's results, in Markdown, from its results file alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def machine_of(result: dict[str, Any]) -> str:
    machine = result["machine"]
    if machine["device"] == "cpu":
        amx = "with AMX" if machine["amx"] else "without AMX"
        threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
        return f"{machine['device_name']}, {threads}, {amx}"
    return machine["device_name"]


def between(row: dict[str, float], form: str = ",.0f") -> str:
    """The median, and the range of the runs."""
    return f"{row['median']:{form}} ({row['least']:{form}} to {row['most']:{form}})"


def copied(result: dict[str, Any]) -> str:
    """What is said of the published image folder, and of no other source."""
    return " (JPEG copy)" if "image folder" in result["settings"]["images"] else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def render_input(result: dict[str, Any]) -> str:
    rows = [[name, between(row)] for name, row in result["summary"]["variants"].items()]
    for name, ratio in result["summary"]["ratios"].items():
        rows.append([f"**{name}**", f"**{between(ratio, '.1f')}**, goal {ratio['goal']:g}"])
    rows += [[name, note] for name, note in result["notes"].items()]
    return table(["Input", "images/s"], rows)


def render_step(result: dict[str, Any]) -> str:
    summary, rows = result["summary"], []
    for kind, row in summary["products_tflops"].items():
        rows.append([f"matrix product, {kind}", "", f"{row['median']:.3g}", ""])
    for mode, row in summary["modes"].items():
        for part, name in (("bare", "bare step"), ("loop", "whole loop")):
            if part in row:
                ratio = row.get("loop_over_bare") if part == "loop" else None
                rows.append([
                    f"{name}, {mode}", between(row[part]), f"{row[part]['tflops']:.3g}",
                    f"{between(ratio, '.3f')}, goal {summary['goal']:g}" if ratio else "",
                ])  # fmt: skip
    if len(summary["modes"]) > 1 and "fastest_loop" in summary:
        name = f"fastest loop ({summary['fastest_loop']}) / bare step ({summary['fastest_bare']})"
        share = summary["fastest_loop_over_fastest_bare"]
        rows.append([name, "", "", f"{share:.3f}, goal {summary['goal']:g}"])
    return table(["Step", "images/s", "TFLOP/s", "loop / bare step"], rows)


def render_baseline(result: dict[str, Any]) -> str:
    summary = result["summary"]
    rows = [
        [name, between(row["images_per_s"]),
         between(row["ours_over_it"], ".2f") if "ours_over_it" in row else ""]
        for name, row in summary["loops"].items()
    ]  # fmt: skip
    said = [f"{name}: {error}." for name, error in result.get("failed", {}).items()]
    about = f"Against the plain float32 loop: {summary['goal']}."
    head = ["Whole loop", "images/s", "this loop is so many times as fast"]
    return "\n\n".join([table(head, rows), about, *said])


def render_scaling(result: dict[str, Any]) -> str:
    rows = []
    for axis, row in result["summary"].items():
        values = [run[axis] for run in result["runs"] if run["axis"] == axis]
        seconds, memory = row["seconds"], row["memory_bytes"]
        rows.append([
            f"{axis.replace('_', ' ')}: {values[0]:,} to {values[-1]:,} (x{row['times']:g})",
            f"x{seconds['last_over_first']:.2f}", f"{seconds['r2']:.4f}",
            f"x{memory['last_over_first']:.2f}",
        ])  # fmt: skip
    return table(["Scaling", "seconds", "R² of a line", "peak memory"], rows)


def render_accuracy(result: dict[str, Any]) -> str:
    rows = []
    for name, row in result["summary"].items():
        recipe = result["recipes"][name]
        cells = [name, recipe["epochs"], recipe["batch_size"]]
        if "accuracy" not in row:
            rows.append([*cells, "0", f"{row['failed']} failed", "", "", "", ""])
            continue
        plain, mirrored = row["accuracy"], row["accuracy_mirrored"]
        rows.append([
            *cells, f"{plain['count']}" + (f", {row['failed']} failed" if row["failed"] else ""),
            f"{plain['mean']:.2%}" + (f" ± {100 * plain['std']:.2f}" if plain["count"] > 1 else ""),
            f"{plain['least']:.2%}", f"{mirrored['mean']:.2%}",
            f"{row['train_accuracy']['mean']:.2%}",
            _seconds(row["training_seconds"]),
        ])  # fmt: skip
    settings = result["settings"]
    about = (
        f"{settings['images']}{copied(result)}: trained on {settings['num_train']:,}, evaluated on "
        f"{settings['num_evaluated']:,} {settings['evaluated_on']} after the last epoch."
    )
    head = ["Recipe", "epochs", "batch", "seeds", "accuracy", "worst", "with mirror images",
            "training accuracy", "training seconds"]  # fmt: skip
    parts = [about, table(head, rows)]
    if "effects" in result:
        parts.append(render_effects(result["effects"]))
    if "averages" in result:
        parts.append(render_averages(result["averages"]))
    if "missing" in result:
        parts.append(f"For {len(result['missing'])} of the runs there was no time.")
    return "\n\n".join(parts)


def _seconds(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    return between(found, ",.2f") if found["count"] > 1 else f"{found['median']:,.2f}"


def render_effects(effects: dict[str, dict[str, Any]]) -> str:
    rows = [
        [name, row["low"], row["high"],
         f"{100 * row['effect']:+.2f} ± {100 * row['standard_error']:.2f}"]
        for name, row in effects.items()
    ]  # fmt: skip
    return table(["Factor", "lower", "upper", "effect in points, standard error"], rows)


def render_averages(averages: dict[str, dict[str, Any]]) -> str:
    rows = [
        [f"{int(steps):,} steps", row["count"],
         f"{100 * row['effect']:+.2f} ± {100 * (row['standard_error'] or 0):.2f}"]
        for steps, row in averages.items()
    ]  # fmt: skip
    return table(["Average of the weights over", "runs", "effect in points, standard error"], rows)


def render_references(result: dict[str, Any]) -> str:
    rows = [
        [name, row["done"], f"{row['accuracy']['mean']:.2%}", row["views"],
         f"{row['accuracy_mirrored']['mean']:.2%}" if "accuracy_mirrored" in row else "",
         between(row["training_seconds"], ".2f"),
         row.get("against_ours", {}).get("said", "")]
        for name, row in result["summary"].items() if row["done"]
    ]  # fmt: skip
    head = ["", "runs", "accuracy", "views", "with mirror images", "training seconds",
            "those / this repository's to that accuracy"]  # fmt: skip
    return table(head, rows)


def render_range_test(result: dict[str, Any]) -> str:
    rows = []
    for name, row in result["summary"].items():
        of, cells = result["settings"]["sets"][name], []
        threads = {run["threads"] for run in result["runs"] if run["set"] == name}
        for rate in ("lr_max", "lr_min"):
            found = row.get(rate)
            cells.append(
                f"{found['mean']:.2g} ({found['least']:.2g} to {found['most']:.2g}, "
                f"x{found['spread']:.2f})" if found else ""
            )  # fmt: skip
        rows.append([
            f"{of['num_train']:,}: {of['images']}", f"{of['sweeps']} x {of['steps']}",
            of["batch_size"], row["seeds"], row["refused"], *cells, *threads,
        ])  # fmt: skip
    head = ["Training images", "sweeps x steps", "batch", "seeds", "without an answer",
            "LRMAX (range, largest / smallest)", "LRMIN", "threads"]  # fmt: skip
    return table(head, rows)


def render_small_sets(result: dict[str, Any]) -> str:
    rows = []
    for row in result["summary"].values():
        found = row["accuracy"]
        rows.append([
            f"{row['set']}: {row['train']} + {row['held_out']}", row["variant"], row["epochs"],
            found["count"], f"{found['mean']:.1%}", f"{found['least']:.1%} to {found['most']:.1%}",
            f"{row['seconds']['mean']:.0f}" if row["seconds"] else "",
        ])  # fmt: skip
    head = ["images to train on + held out", "start and settings", "epochs", "seeds",
            "accuracy, mean", "range", "seconds"]  # fmt: skip
    return table(head, rows)


SCALE_COLUMNS = {
    "open_seconds": ("seconds to open", 1, ",.2f"),
    "images_per_s": ("images/s", 1, ",.0f"),
    "seconds": ("seconds", 1, ",.2f"),
    "report_bytes": ("report, MB", 1e-6, ",.1f"),
    "memory_bytes": ("memory, MB", 1e-6, ",.0f"),
}
"""Of a point of ``scale.py``: what it is called, in which unit and form."""


def render_scale(result: dict[str, Any]) -> str:
    parts = []
    for axis in dict.fromkeys(run["axis"] for run in result["runs"]):
        own = [run for run in result["runs"] if run["axis"] == axis]
        columns = {name: as_ for name, as_ in SCALE_COLUMNS.items() if name in own[0]}
        rows = [
            [f"`{run['value']}`" if axis == "start" else f"{run['value']:,}",
             *(f"{run[name] * unit:{form}}" for name, (_, unit, form) in columns.items())]
            for run in own
        ]  # fmt: skip
        slopes = result["summary"].get(axis, {})
        if slopes:
            rows.append([
                "slope at the end",
                *(f"{slopes[name]['slope']:+.2f}" if name in slopes else "" for name in columns),
            ])  # fmt: skip
        parts.append(
            table([axis.replace("_", " "), *(head for head, _, _ in columns.values())], rows)
        )
    return "\n\n".join(parts)


def render_reliability(result: dict[str, Any]) -> str:
    """Kills, a library a row; then the other faults, a library a column."""
    summary, rows = result["summary"], []
    for row in summary.values():
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        cells = []
        for kills in (row["kills"], row["disk_kills"]):
            cells += [kills[field] for field in ("kills", "by_hand", "same_weights", "other_steps")]
        rows.append([f"{row['title']} ({versions})", *cells])
    head = ["", "kills while it computes", "a hand needed", "same weights", "other number of steps",
            "kills at a file operation", "a hand needed", "same weights", "other number of steps"]  # fmt: skip
    faults = dict.fromkeys(fault for row in summary.values() for fault in row["faults"])
    cells = [
        [fault, *(row["faults"].get(fault, "") for row in summary.values())] for fault in faults
    ]
    titles = ["", *(row["title"] for row in summary.values())]
    return f"{table(head, rows)}\n\n{table(titles, cells)}"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "input": render_input,
    "step": render_step,
    "baseline": render_baseline,
    "scaling": render_scaling,
    "accuracy": render_accuracy,
    "references": render_references,
    "range_test": render_range_test,
    "small_sets": render_small_sets,
    "scale": render_scale,
    "reliability": render_reliability,
}


def show(result: dict[str, Any]) -> None:
    """Print what was measured, and what could not be."""
    if result["summary"]:
        print(TABLES[result["benchmark"]](result))
    for name, error in result.get("failed", {}).items():
        print(f"{name}: {error}")
