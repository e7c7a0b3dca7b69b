#!/usr/bin/env python3
"""Publish a finished run, then the evaluation of its weights: publish.py FOLDER.

Of a folder that train.py or the notebook wrote, the numbers go to results/, the pictures to images/
and the weights in half precision to weights/; of one that evaluate.py wrote from these weights, the
numbers go to results/; of a run on the digits the numbers and, to docs/, the report. Then the parts
of both READMEs that are made from results, and the card of the weights, are written; without FOLDER
nothing but these.
"""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from faults_table import render_faults
from weights_card import SOURCES, render_card, share

from benchmarks.render import render_benchmarks, render_gpu_headline, render_speed
from models import CustomResNet
from onecycle.modules import model_summary
from onecycle.recipe import PRESETS
from onecycle.results.report.words import percent
from onecycle.results.weights import load_weights, save_weights
from transformation import get_train_aug_transform

RESULTS = ROOT / "results" / "cifar10"
EVALUATION = RESULTS / "evaluation.json"
WEIGHTS = ROOT / "weights" / "custom_resnet_cifar10.safetensors"
CARD = WEIGHTS.with_name("README.md")
FAULTS = ROOT / "results" / "faults" / "faults.json"
NUMBERS = ("results.json", "history.csv", "steps.csv", "log.txt")
IMAGES = {
    "samples": "sample.png",
    "lr_finder": "lrfinder.png",
    "history": "Graph.png",
    "lr_history": "lrhistory.png",
    "misclassified": "Misclassified.png",
    "confusion_matrix": "Cm.png",
}
BENCHMARKS = ROOT / "benchmarks" / "README.md"
NUM_TEST = 10_000


def copy_run(run: Path) -> None:
    results = json.loads((run / "results.json").read_text("utf-8"))
    data, optimizer = results["data"], results["recipe"]["optimizer"]
    missing = [name for name in IMAGES if not (run / "figures" / f"{name}.png").is_file()]
    if data["source"] not in SOURCES or data["evaluated_on"] != "test images" or missing:
        raise SystemExit(
            f"{run} is not a whole CIFAR-10 run: {data['source']}, evaluated on "
            f"{data['num_test']:,} {data['evaluated_on']}, without the figures {missing}"
        )
    if optimizer != "adam":
        raise SystemExit(
            f"{run} was trained with {optimizer}; the published run is the assignment's"
        )
    stored = load_weights(run / "model.safetensors")  # where it is missing, nothing is replaced
    for folder in (RESULTS, ROOT / "images", WEIGHTS.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for name in NUMBERS:
        shutil.copyfile(run / name, RESULTS / name)
    for name, image in IMAGES.items():
        shutil.copyfile(run / "figures" / f"{name}.png", ROOT / "images" / image)
    save_weights(WEIGHTS, stored.state_dict, data=stored.data, recipe=stored.recipe)
    EVALUATION.unlink(missing_ok=True)  # it was of the weights before


def copy_demo(run: Path) -> None:
    shutil.copyfile(run / "results.json", ROOT / "results" / "digits" / "results.json")
    shutil.copyfile(run / "report.html", ROOT / "docs" / "digits-report.html")


def copy_evaluation(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text("utf-8"))
    found, published = results["weights"]["sha256"], load_weights(WEIGHTS).sha256
    if found != published or results["evaluation"]["images"] != NUM_TEST:
        raise SystemExit(
            f"{folder} has {results['evaluation']['images']:,} images and weights of SHA-256 "
            f"{found}; wanted are {NUM_TEST:,} and {WEIGHTS.name}, {published}"
        )
    shutil.copyfile(folder / "results.json", EVALUATION)


def read_evaluation() -> dict | None:
    return json.loads(EVALUATION.read_text("utf-8")) if EVALUATION.is_file() else None


def render_results(results: dict) -> str:
    recipe, machine, final = results["recipe"], results["machine"], results["final"]
    rates, data, seconds = results["learning_rate"], results["data"], results["seconds"]
    peak_epoch = f"{recipe['peak_epoch']:g}"
    rows = {
        "Test accuracy, last epoch": f"**{final['test_accuracy']:.2%}**",
        "Test loss, last epoch": f"{final['test_loss']:.4f} nats",
        "Training accuracy, last epoch": f"{final['train_accuracy']:.2%}",
        "Images": f"{SOURCES[data['source']]}: {data['num_train']:,} to train on, "
        f"{data['num_test']:,} {data['evaluated_on']}",
        "Epochs": f"{recipe['epochs']}, peak at {peak_epoch}, batch {recipe['batch_size']}, "
        f"seed {recipe['seed']}, one run",
        "LRMAX, LRMIN": f"{rates['lr_max']:.4g}, {rates['lr_min']:.4g}",
        "Rule": rates["rule"],
        "Adam": f"betas {recipe['beta1']:g} and {recipe['beta2']:g}, decoupled weight decay "
        f"{recipe['weight_decay']:g} on weights only",
        "CrossEntropyLoss": f"label smoothing {recipe['label_smoothing']:g}",
        "Time": f"{seconds['train'] / 60:.0f} minutes of training, the quickest epoch in "
        f"{min(epoch['train_seconds'] for epoch in results['history']):.0f} s, "
        f"{seconds['test'] / 60:.0f} minutes of evaluation",
        "Machine": f"{machine['device_name']}, {machine['threads']} threads, "
        f"{machine['precision']}, torch {machine['versions']['torch']}",
    }
    if evaluated := read_evaluation():
        rows["Published weights, in half precision"] = (
            f"{share(evaluated['evaluation'])}; "
            f"{percent(evaluated['evaluation']['mirrored_accuracy'])} with mirror images"
        )
    lines = []
    if recipe["epochs"] != PRESETS["assignment"].epochs:
        lines += [
            f"**This run has {recipe['epochs']} epochs, not the assignment's "
            f"{PRESETS['assignment'].epochs}**, whose accuracy has not been measured yet: "
            "`make notebook` and `make publish` make that run and its figures.",
            "",
        ]
    if data["source"] != "CIFAR-10":
        lines += [
            "The images are a copy of CIFAR-10 that was encoded again as JPEG: these numbers are not "
            "comparable with results on the original files.",
            "",
        ]
    lines += ["| measure | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    names = " | ".join(final["class_accuracy"])
    accuracies = " | ".join(percent(value, 1) for value in final["class_accuracy"].values())
    lines += [
        "",
        "Accuracy by class, last epoch:",
        "",
        f"| {names} |",
        "| " + "--- | " * len(final["class_accuracy"]),
        f"| {accuracies} |",
    ]
    return "\n".join(line.rstrip() for line in lines)


def render_log(log: str) -> str:
    return f"<details><summary>Log of the run</summary>\n\n```\n{log.strip()}\n```\n</details>"


def render_headline(results: dict) -> str:
    recipe, machine, data = results["recipe"], results["machine"], results["data"]
    seconds = results["seconds"]["train"]
    took = f"{seconds / 60:.0f} minutes" if seconds >= 600 else f"{seconds:.1f} s"
    return (
        f"**{results['final']['test_accuracy']:.2%} accuracy on the {data['num_test']:,} test images "
        f"after {recipe['epochs']} epochs** ({SOURCES[data['source']]}; one run, its last epoch; {took} "
        f"of training on {machine['device_name']}, {machine['threads']} threads, "
        f"{machine['precision']})."
    )


def render_readme(text: str) -> str:
    """The README with every part between its markers made anew."""
    results = json.loads((RESULTS / "results.json").read_text("utf-8"))
    return fill(text, {
        "headline": " ".join([render_headline(results), render_gpu_headline()]).strip(),
        "results": render_results(results),
        "speed": render_speed(),
        "faults": render_faults(FAULTS),
        "log": render_log((RESULTS / "log.txt").read_text("utf-8")),
        "summary": f"```\n{model_summary(CustomResNet())}\n```",
        "augmentation": f"```python\n{inspect.getsource(get_train_aug_transform).strip()}\n```",
    })  # fmt: skip


def fill(text: str, parts: dict[str, str]) -> str:
    """A text with each part put between its markers.

    Raises:
        SystemExit: a part's markers are not there once each.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name}: made by scripts/publish.py -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{begin} and {end} are needed once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{part}\n{end}{rest.split(end)[1]}"
    return text


def main(folder: str = "") -> None:
    if folder:
        results = json.loads((Path(folder) / "results.json").read_text("utf-8"))
        kind = "evaluation" if "weights" in results else results["data"]["source"]
        copy = {"evaluation": copy_evaluation, "digits": copy_demo}.get(kind, copy_run)
        copy(Path(folder))
    readme = ROOT / "README.md"
    readme.write_text(render_readme(readme.read_text("utf-8")), "utf-8")
    measured = fill(BENCHMARKS.read_text("utf-8"), {"benchmarks": render_benchmarks()})
    BENCHMARKS.write_text(measured, "utf-8")
    results = json.loads((RESULTS / "results.json").read_text("utf-8"))
    CARD.write_text(render_card(WEIGHTS, results, read_evaluation()), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
