#!/usr/bin/env python3
"""Publish a finished run, then the evaluation of its weights: publish.py FOLDER.

From the folder of a run on CIFAR-10 the numbers go to results/, the pictures to images/ and the
weights in half precision to onecycle/weights/; from one of ``onecycle evaluate`` on these weights, the
numbers go to results/; from a run on the digits the numbers and, to docs/, the report. Then the
blocks of the pages that are made from results, and the card of the weights, are filled; without
FOLDER nothing but these. What is not whole is refused, and then nothing is replaced.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from fault_table import render_faults
from weights_card import SOURCES, recipe_rows, render_card, share

from benchmarks import render
from benchmarks.tables import copied, machine_of, table
from models import CustomResNet
from onecycle.files import write_whole
from onecycle.modules import model_summary
from onecycle.recipe import PRESETS
from onecycle.results.report.words import percent
from onecycle.results.weights import load_weights, save_weights
from transformation import get_train_aug_transform

RESULTS = ROOT / "results" / "cifar10"
EVALUATION = RESULTS / "evaluation.json"
WEIGHTS = ROOT / "onecycle" / "weights" / "custom_resnet_cifar10.safetensors"
FAULTS = ROOT / "results" / "faults" / "faults.json"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
NUMBERS = ("results.json", "history.csv", "steps.csv", "log.txt")
IMAGES = {
    "samples": "sample.png",
    "lr_finder": "lrfinder.png",
    "history": "Graph.png",
    "lr_history": "lrhistory.png",
    "misclassified": "Misclassified.png",
    "confusion_matrix": "Cm.png",
}
NUM_TEST = 10_000
JPEG_COPY = (
    "Trained and tested on a JPEG copy of CIFAR-10, so not comparable with results on the original "
    "files."
)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text("utf-8"))


def read_evaluation() -> dict[str, Any] | None:
    return read(EVALUATION) if EVALUATION.is_file() else None


def replace(files: Mapping[Path, bytes]) -> None:
    """Write files whose whole content is there."""
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)


def copy_run(run: Path) -> None:
    """Publish a run of the assignment on CIFAR-10; all of it is read before anything is replaced."""
    results = read(run / "results.json")
    data, optimizer = results["data"], results["recipe"]["optimizer"]
    parts = results.get("parts", {})  # older runs have none
    missing = [name for name in IMAGES if not (run / "figures" / f"{name}.png").is_file()]
    if data["source"] not in SOURCES or data["evaluated_on"] != "test images" or missing:
        raise SystemExit(
            f"{run} is not a complete CIFAR-10 run: {data['source']}, evaluated on "
            f"{data['num_test']:,} {data['evaluated_on']}, without the figures {missing}"
        )
    own = set(parts.items()) - {("model", "CustomResNet"), ("augment", "albumentations")}
    if optimizer != "adam" or own:
        raise SystemExit(
            f"{run} was trained with {optimizer} and {parts}; the published run is the assignment's"
        )
    files = {RESULTS / name: (run / name).read_bytes() for name in NUMBERS}
    for name, image in IMAGES.items():
        files[ROOT / "images" / image] = (run / "figures" / f"{name}.png").read_bytes()
    stored = load_weights(run / "model.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        half = Path(folder) / WEIGHTS.name
        save_weights(half, stored.state_dict, data=stored.data, recipe=stored.recipe)
        files[WEIGHTS] = half.read_bytes()
    EVALUATION.unlink(missing_ok=True)  # it was of the weights before
    replace(files)


def copy_demo(run: Path) -> None:
    replace({
        ROOT / "results" / "digits" / "results.json": (run / "results.json").read_bytes(),
        ROOT / "docs" / "digits-report.html": (run / "report.html").read_bytes(),
    })  # fmt: skip


def copy_evaluation(folder: Path) -> None:
    results = read(folder / "results.json")
    found, published = results["weights"]["sha256"], load_weights(WEIGHTS).sha256
    if found != published or results["evaluation"]["images"] != NUM_TEST:
        raise SystemExit(
            f"{folder} has {results['evaluation']['images']:,} images and weights of SHA-256 "
            f"{found}; wanted are {NUM_TEST:,} and {WEIGHTS.name}, {published}"
        )
    replace({EVALUATION: (folder / "results.json").read_bytes()})


def duration(seconds: float) -> str:
    """Minutes where a training takes long, seconds where it does not."""
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.2f} s"


def device_of(machine: Mapping[str, Any]) -> str:
    """The device by name; of a CPU also its threads, which decide how fast it is."""
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else ""
    return f"{machine['device_name']}{threads}"


def render_headline(results: Mapping[str, Any]) -> str:
    """Accuracy and training time of the published run, and of the benchmark on a GPU."""
    epochs, is_copy = results["recipe"]["epochs"], results["data"]["source"] != "CIFAR-10"
    where, took = f"{device_of(results['machine'])}, single run", results["seconds"]["train"]
    rows = [(where, f"**{results['final']['test_accuracy']:.2%}**", duration(took))]
    notes = ["Training steps only."]
    measured = render.load(render.GPU / "accuracy.json") or {}
    summary = measured.get("summary", {}).get("assignment", {})
    if (
        "accuracy" in summary
        and "broken_off" not in measured
        and measured["recipes"]["assignment"]["epochs"] == epochs
    ):
        accuracy, median = summary["accuracy"], summary["training_seconds"]["median"]
        name, mode = machine_of(measured), measured["machine"]["compile_mode"]
        said = f"**{accuracy['mean']:.2%} ± {100 * accuracy['std']:.2f}**"
        rows.append((f"{name}, {accuracy['count']} seeds", said, duration(median)))
        if mode:
            notes[0] = f"Training steps only; the {name} runs are compiled (`--compile {mode}`)."
        notes.append(f"± is the standard deviation over the {accuracy['count']} seeds.")
        is_copy |= bool(copied(measured))
    if is_copy:
        notes.append(JPEG_COPY)
    head = ["", f"test accuracy after {epochs} epochs", "training time*"]
    return f"{table(head, rows)}\n\n\\* {' '.join(notes)}"


def render_results(results: Mapping[str, Any]) -> str:
    """The figures and the recipe of the published run."""
    recipe, machine, final = results["recipe"], results["machine"], results["final"]
    data, seconds = results["data"], results["seconds"]
    quickest = min(epoch["train_seconds"] for epoch in results["history"])
    rows = {
        "Test accuracy, final epoch": f"**{final['test_accuracy']:.2%}**",
        "Test loss, final epoch": f"{final['test_loss']:.4f} nats",
        "Training accuracy, final epoch": f"{final['train_accuracy']:.2%}",
        "Images": f"{SOURCES[data['source']]}: {data['num_train']:,} training images, "
        f"{data['num_test']:,} {data['evaluated_on']}",
        "Learning rate": results["learning_rate"]["rule"],
        "Time": f"single run, {duration(seconds['train'])} of training, {duration(quickest)} the "
        f"fastest epoch, {duration(seconds['test'])} of evaluation",
        "Machine": f"{device_of(machine)}, {machine['precision']}, "
        f"torch {machine['versions']['torch']}",
    }
    if evaluated := read_evaluation():
        rows["Published weights, in half precision"] = (
            f"{share(evaluated['evaluation'])}; "
            f"{percent(evaluated['evaluation']['mirrored_accuracy'])} averaged with mirror images"
        )
    parts, planned = [], PRESETS["assignment"].epochs
    if recipe["epochs"] != planned:
        parts.append(
            f"**This run has {recipe['epochs']} epochs, not the assignment's {planned}**, whose accuracy "
            "is not measured yet: `make notebook` and `make publish` train and publish that run."
        )
    if data["source"] != "CIFAR-10":
        parts.append(JPEG_COPY)
    classes = final["class_accuracy"]
    parts += [
        table(["measure", "value"], rows.items()),
        "Accuracy by class, final epoch:",
        table(list(classes), [[percent(value, 1) for value in classes.values()]]),
        "The recipe, the assignment's numbers and ours:",
        table(["field", "value", "meaning"], recipe_rows(results)),
    ]
    return "\n\n".join(parts)


def render_log(log: str) -> str:
    return f"<details><summary>Log of the run</summary>\n\n```\n{log.strip()}\n```\n</details>"


BLOCKS: dict[str, Callable[[], str]] = {
    "headline": lambda: render_headline(read(RESULTS / "results.json")),
    "results": lambda: render_results(read(RESULTS / "results.json")),
    "log": lambda: render_log((RESULTS / "log.txt").read_text("utf-8")),
    "summary": lambda: f"```\n{model_summary(CustomResNet())}\n```",
    "augmentation": lambda: f"```python\n{inspect.getsource(get_train_aug_transform).strip()}\n```",
    "speed": render.render_speed,
    "faults": lambda: render_faults(FAULTS),
    "benchmarks": render.render_benchmarks,
    "range_test": lambda: render.render_one("range_test"),
    "small_sets": lambda: render.render_one("small_sets"),
    "scale": lambda: render.render_one("scale"),
    "reliability": lambda: render.render_one("reliability"),
}


def fill(texts: Iterable[str], blocks: Mapping[str, str]) -> list[str]:
    """Texts with each block put between its markers, in whichever of them these are.

    Raises:
        SystemExit: a block's markers are not there once each, in one text.
    """
    texts = list(texts)
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: made by scripts/publish.py -->", f"<!-- end of {name} -->"
        between = re.compile(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
        counts = [sum(text.count(marker) for text in texts) for marker in (begin, end)]
        if counts != [1, 1] or not any(map(between.search, texts)):
            raise SystemExit(f"{begin} and {end} are needed once each, in one page")
        texts = [between.sub(lambda _: f"{block}\n", text) for text in texts]  # noqa: B023
    return texts


def read_pages() -> list[str]:
    return [page.read_text("utf-8") for page in PAGES]


def render_pages() -> dict[Path, bytes]:
    """The pages and the card with all that is made from results."""
    texts = fill(read_pages(), {name: make() for name, make in BLOCKS.items()})
    card = render_card(WEIGHTS, read(RESULTS / "results.json"), read_evaluation())
    pages = dict(zip(PAGES, texts, strict=True)) | {WEIGHTS.with_name("README.md"): card}
    return {page: text.encode() for page, text in pages.items()}


def main(folder: str = "") -> None:
    fill(read_pages(), dict.fromkeys(BLOCKS, ""))  # a page without its markers is refused first
    if folder:
        results = read(Path(folder) / "results.json")
        kind = "evaluation" if "weights" in results else results["data"]["source"]
        copy = {"evaluation": copy_evaluation, "digits": copy_demo}.get(kind, copy_run)
        copy(Path(folder))
    replace(render_pages())


if __name__ == "__main__":
    main(*sys.argv[1:])
