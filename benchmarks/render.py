#!/usr/bin/env python3
"""What the READMEs say of the benchmarks, from their results files alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.baseline import OURS
from benchmarks.tables import TABLES, copied, machine_of, render_accuracy

RESULTS = Path(__file__).resolve().parent / "results"
CPU, GPU = RESULTS, RESULTS / "gpu"
COMMANDS = {
    "cpu": "make bench",
    "gpu": "make bench-gpu",
    "references": "REFERENCES=DIR make bench-gpu",
}


def load(file: Path) -> dict[str, Any] | None:
    """A results file with something in it, or None."""
    try:
        result = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    return result if result.get("summary") else None


def broken_off(result: dict[str, Any]) -> str:
    """What a section that did not end says of itself."""
    return (
        f"\n\nThis section was broken off: {result['broken_off']}."
        if "broken_off" in result
        else ""
    )


CHOICE = {
    "screening": "**Which choices help**: a designed experiment with two levels of each",
    "factorial": "**How the recipe was chosen**: all combinations of two levels of four numbers",
    "halving": "**The recipes that follow from it**, over seeds",
    "chosen": "**The chosen recipe**, on the test images",
}
"""The sections by which the recipe is chosen, which are told of where they were run."""
PLACES = [
    ("cpu", CPU, ("input", "step", "baseline", "scaling", "references")),
    ("gpu", GPU, ("accuracy", "step", "input", "speedrun", "speedrun_epochs", "references",
                  "baseline", "scaling")),
]  # fmt: skip


def render_benchmarks(cpu: Path = CPU, gpu: Path = GPU) -> str:
    """Markdown: a table for each results file; what has none is named, with its command."""
    folders, parts = {"cpu": cpu, "gpu": gpu}, []
    for place, _, names in PLACES:
        results = {name: load(folders[place] / f"{name}.json") for name in names}
        machines = list(dict.fromkeys(machine_of(r) for r in results.values() if r))
        title = "On a CPU" if place == "cpu" else "On a GPU"
        parts.append(f"**{title}**" + (f": {'; '.join(machines)}" if machines else ""))
        for result in filter(None, results.values()):
            where = f"{machine_of(result)}:\n\n" if len(machines) > 1 else ""
            parts.append(f"{where}{TABLES[result['benchmark']](result)}{broken_off(result)}")
        for name, title in CHOICE.items() if place == "gpu" else ():
            if result := load(folders[place] / f"{name}.json"):
                about = f"{title}: {machine_of(result)}"
                parts += [about, f"{render_accuracy(result)}{broken_off(result)}"]
        missing = {}
        for name in (name for name, result in results.items() if not result):
            if (place, name) == ("cpu", "references"):
                continue
            missing.setdefault(COMMANDS.get(name, COMMANDS[place]), []).append(name)
        parts += [
            f"Not yet measured: {', '.join(names)} (`{command}`)."
            for command, names in missing.items()
        ]
    for file in sorted(cpu.glob("*.json")):  # campaigns of accuracy.py
        result = load(file)
        if result and result["benchmark"] == "accuracy" and file.stem != "accuracy":
            parts += [f"**`{file.stem}`**: {machine_of(result)}", render_accuracy(result)]
    return "\n\n".join(parts)


def render_speed(cpu: Path = CPU, gpu: Path = GPU) -> str:
    """Markdown: the few numbers that matter, in a list for each machine."""
    said: dict[str, list[str]] = {}
    for title, folder in (("On a GPU", gpu), ("On a CPU", cpu)):
        sayings = ON_A_GPU if folder == gpu else CAMPAIGNS
        for name, say in (SAID | sayings).items():
            result = load(folder / f"{name}.json")
            line = say(result) if result else ""
            if line:
                said.setdefault(f"{title} ({machine_of(result)})", []).append(f"- {line}.")
    parts = [f"{machine}:\n\n" + "\n".join(lines) for machine, lines in said.items()]
    if not any((gpu / f"{name}.json").exists() for name in PLACES[1][2]):
        parts.append("Nothing has been measured on a GPU yet: `make bench-gpu` does all of it.")
    return "\n\n".join(parts)


def render_gpu_headline(gpu: Path = GPU) -> str:
    """Markdown: one sentence on the assignment's epochs on a GPU; nothing without its file."""
    result = load(gpu / "accuracy.json")
    said = _say_seeds(result, f"On one {machine_of(result)} the") if result else ""
    if not said:
        return ""
    mode = result["machine"]["compile_mode"]
    with_mode = f" with `--compile {mode}`" if mode else ""
    return (
        f"{said}. These are seconds of training{with_mode}: compiling, preparing the images, the range "
        "test and evaluation come on top."
    )


def render_one(name: str, folder: Path = CPU) -> str:
    """Markdown: machine and table of one results file; what is not measured has its command."""
    result = load(folder / f"{name}.json")
    if result is None:
        return f"Not yet measured: `benchmarks/{name}.py`."
    return f"{machine_of(result)}\n\n{TABLES[name](result)}"


def _say_step(result: dict[str, Any]) -> str:
    summary = result["summary"]
    if "fastest_loop" not in summary:
        return ""
    loop = summary["modes"][summary["fastest_loop"]]
    if len(summary["modes"]) == 1:
        share = loop["loop_over_bare"]["median"]
    else:
        share = summary["fastest_loop_over_fastest_bare"]
    product = summary["products_tflops"][summary["product"]]["median"]
    return (
        f"The whole loop, input included, runs at {share:.2f} of the rate of a bare step on constant "
        f"data: {loop['loop']['tflops']:.3g} TFLOP/s; a large matrix product: {product:.3g}"
    )


def _say_input(result: dict[str, Any]) -> str:
    ratios = result["summary"]["ratios"]
    for name, ratio in reversed(ratios.items()):  # on a GPU its own comes last
        first, second = name.split(" / ")
        return f"The augmented input comes {ratio['median']:.1f} times as fast: {first}, against {second}"
    return ""


def _say_baseline(result: dict[str, Any]) -> str:
    loops = result["summary"]["loops"]
    times = [
        f"{row['ours_over_it']['median']:.1f} ({name})"
        for name, row in loops.items() if name != OURS
    ]  # fmt: skip
    return (
        f"Training takes {loops[OURS]['images_per_s']['median']:,.0f} images/s. So many times as fast "
        f"as others with the same network, batch size and optimizer: {', '.join(times)}"
    )


def _say_recipe(result: dict[str, Any]) -> str:
    said = []
    for name in ("ours", "plain"):
        row = result["summary"][name]["accuracy"]
        said.append(f"{row['mean']:.2%} ± {100 * row['std']:.2f}")
    settings = result["settings"]
    return (
        f"Of {settings['num_evaluated']:,} held-out training images the recipe, trained on "
        f"{settings['num_train']:,} others, gets {said[0]} right, and plain Adam at the usual rate, "
        f"which was not tuned, {said[1]}, each over "
        f"{row['count']} seeds{copied(result)}"
    )


def _say_speedrun(result: dict[str, Any]) -> str:
    said = []
    for field in ("accuracy", "accuracy_mirrored"):
        epochs, minutes = min(
            (result["recipes"][name]["epochs"], row["training_seconds"]["median"] / 60)
            for name, row in result["summary"].items()
            if row[field]["mean"] >= 0.9
        )
        said.append(f"{epochs} epochs and {minutes:.0f} minutes")
    return (
        f"The preset `speedrun` has 90 % of the test images right after {said[0]}, with mirror "
        f"images after {said[1]}, one run for each number of epochs{copied(result)}"
    )


def _say_seeds(result: dict[str, Any], what: str) -> str:
    """Of each recipe its epochs, seconds and accuracy; nothing of a section that was broken off."""
    said = []
    for name, row in result["summary"].items() if "broken_off" not in result else ():
        if "accuracy" not in row:
            continue
        plain, seconds = row["accuracy"], row["training_seconds"]["median"]
        said.append(
            f"{result['recipes'][name]['epochs']} epochs take {seconds:.2f} s and end at "
            f"{plain['mean']:.2%} ± {100 * plain['std']:.2f} (deviation over {plain['count']} seeds), "
            f"{plain['least']:.2%} at worst, {row['accuracy_mirrored']['mean']:.2%} with mirror images"
        )
    return f"{what} {'; '.join(said)}{copied(result)}" if said else ""


ON_A_GPU: dict[str, Callable[[dict[str, Any]], str]] = {
    "accuracy": lambda result: _say_seeds(result, "The assignment's"),
    "speedrun": lambda result: _say_seeds(result, "The preset `speedrun`:"),
}
CAMPAIGNS = {"recipe_heldout": _say_recipe, "speedrun_full": _say_speedrun}
SAID: dict[str, Callable[[dict[str, Any]], str]] = {
    "baseline": _say_baseline,
    "step": _say_step,
    "input": _say_input,
}


if __name__ == "__main__":
    print(render_benchmarks())
