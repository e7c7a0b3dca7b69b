"""The table of ``make faults``, from its results file alone."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.tables import table

ROWS = {
    "kills": (
        "{random_kills:,} SIGKILLs at random moments and {inside:,} at five points inside a save",
        "after resuming, each of the {runs:,} runs is bit-identical to an uninterrupted run",
    ),
    "signals": (
        "{signals:,} times SIGTERM, SIGINT, SIGHUP, SIGUSR1 or SIGXCPU at random moments of the "
        "training, {signals_beside_it:,} times before or after it",
        "exit code 128 and its number, at most {most_steps_begun_after} more step and "
        "{most_saves_after} save; bit-identical after resuming",
    ),
    "calls": (
        "{trials:,} calls of the system that fail (EIO, ENOSPC for good, EACCES, ENOMEM, EINTR, half a "
        "write), one in each command, drawn from all that train ({calls[train]:,}), evaluate "
        "({calls[evaluate]:,}) and predict ({calls[predict]:,}) make",
        "{ended_well:,} times nothing was lost, {refused:,} times one line and the right exit code; "
        "the same command again gave the same files each time, nothing was left over",
    ),
    "mutations": (
        "{mutations:,} damaged, foreign, hostile and unfit checkpoints",
        "none loaded, none executed; fell back to the previous checkpoint {fallbacks:,} times",
    ),
    "edits": (
        "{edits:,} edits of results, histories, logs, weights, recipes and checkpoints whose digest was "
        "made anew",
        "{refused:,} refused in one line, {taken:,} still valid; no traceback",
    ),
    "pictures": (
        "{pictures:,} pictures of {formats} formats, four of five damaged, under any name",
        "{read:,} read, {refused:,} refused in one line with their name",
    ),
    "command_lines": (
        "{command_lines:,} random command lines",
        "one line and the right exit code, before any image is loaded",
    ),
    "not_finite": (
        "NaN and Inf at {num_places} places, {cases:,} cases",
        "stopped within {most_steps_until_stopped} steps, naming epoch, step, learning rate and "
        "losses; none in the {files_read:,} files written",
    ),
    "evaluation": (
        "1 to 8 processes, 0 to 50 images; the gradient of two processes",
        "each image once; within {gradient_tolerance:g} of the gradient of one process",
    ),
    "footprint": (
        "{epochs} epochs with evaluation and figures in one process; a save at the real size",
        "descriptors, children, figures and tensors as after the third epoch, "
        "{memory_growth_mb_an_epoch:.2f} MB per epoch, no socket; {save_ms:.0f} ms, "
        "{save_share_of_an_epoch:.2%} of an epoch at {stated_images_per_s} images/s",
    ),
}
"""What ``make faults`` does, and what is said of it if nothing failed."""


def render_faults(file: Path) -> str:
    """What ``make faults`` counted, as a table."""
    if not file.is_file():
        return "Not yet measured: `make faults` counts all of this on small trainings."
    results, rows = json.loads(file.read_text("utf-8")), []
    for name, (test, result) in ROWS.items():
        found = results["sections"].get(name, {"failures": ["it was not run"]})
        numbers = found | {
            "inside": sum(found.get("kills_inside_a_save", {}).values()),
            "num_places": len(found.get("places", [])),
        }
        if failures := found["failures"]:
            test, result = name.replace("_", " "), f"**failures: {len(failures)}**, first {{first}}"
            numbers["first"] = failures[0][:200]
        rows.append([test.format_map(numbers), result.format_map(numbers)])
    return (
        f"{results['seconds'] / 60:.0f} minutes on {results['machine']['device_name']} with torch "
        f"{results['machine']['versions']['torch']}:\n\n{table(['test', 'result'], rows)}"
    )
