"""What docs/resuming.md says of tests/faults, from its results file alone."""

from __future__ import annotations

import json
from pathlib import Path

ROWS = {
    "kills": (
        "{random_kills:,} SIGKILLs at random moments and {inside:,} at five points inside a save",
        "each of the {runs:,} runs, gone on with, ended bit for bit like one that never stopped",
    ),
    "signals": (
        "{signals:,} times SIGTERM or SIGINT at random moments of the training, "
        "{signals_beside_it:,} times before or after it",
        "exit code 143 or 130, at most {most_steps_begun_after} more step and "
        "{most_saves_after} save; gone on with, bit for bit the same end",
    ),
    "mutations": (
        "{mutations:,} damaged, foreign, hostile and unfit checkpoints",
        "none loaded, none executed; the one before taken {fallbacks:,} times",
    ),
    "command_lines": (
        "{command_lines:,} random command lines",
        "one line and the right exit code, before any image is loaded",
    ),
    "not_finite": (
        "NaN and Inf at {num_places} places, {cases:,} cases",
        "stopped within {most_steps_until_stopped} steps, naming epoch, step, rate and losses; "
        "nothing of it in {files_read:,} files",
    ),
    "evaluation": (
        "1 to 8 processes, 0 to 50 images; the gradient of two processes",
        "each image once; within {gradient_tolerance:g} of one process's",
    ),
    "footprint": (
        "{epochs} epochs with evaluation and figures in one process; a save at the real size",
        "descriptors, children, figures and tensors as after the third, "
        "{memory_growth_mb_an_epoch:.2f} MB an epoch, no socket; {save_ms:.0f} ms, "
        "{save_share_of_an_epoch:.2%} of an epoch at {stated_images_per_s} images/s",
    ),
}
"""What is done, and what is said of it where nothing failed."""


def render_faults(file: Path) -> str:
    """What the suites counted, in a paragraph and a table."""
    if not file.is_file():
        return "Not yet measured: `make faults` counts all of this on small trainings."
    results = json.loads(file.read_text("utf-8"))
    machine = results["machine"]
    lines = [
        f"<details><summary><code>make faults</code> tried all of this on small trainings, in "
        f"{results['seconds'] / 60:.0f} minutes on {machine['device_name']} with torch "
        f"{machine['versions']['torch']}</summary>",
        "",
        "| what was done | what came of it |",
        "| --- | --- |",
    ]
    for name, (what, came) in ROWS.items():
        found = results["sections"].get(name, {"failures": ["it was not run"]})
        failures = found["failures"]
        numbers = found | {
            "inside": sum(found.get("kills_inside_a_save", {}).values()),
            "num_places": len(found.get("places", [])),
        }
        if failures:
            what, came = name.replace("_", " "), f"**failures: {len(failures)}**, first {{first}}"
            numbers["first"] = failures[0][:200]
        lines.append(f"| {what} | {came} |".format_map(numbers))
    return "\n".join([*lines, "", "</details>"])
