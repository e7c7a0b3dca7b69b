#!/usr/bin/env python3
"""Publish a finished run: publish.py RUN_DIR.

Copies its numbers to results/, its pictures to images/, its weights in half precision to weights/,
and writes the README's parts that are made from them. Without RUN_DIR only the README is written.
"""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from models import CustomResNet, save_weights
from recipe import PRESETS
from transformation import get_train_aug_transform
from utils import model_summary

RESULTS = ROOT / "results" / "cifar10"
WEIGHTS = ROOT / "weights" / "custom_resnet_cifar10.safetensors"
NUMBERS = ("results.json", "history.csv", "steps.csv", "log.txt")
IMAGES = {
    "samples": "sample.png",
    "lr_finder": "lrfinder.png",
    "history": "Graph.png",
    "lr_history": "lrhistory.png",
    "misclassified": "Misclassified.png",
    "confusion_matrix": "Cm.png",
}
SOURCES = {"CIFAR-10": "CIFAR-10", "CIFAR-10 (image folder)": "CIFAR-10, JPEG copy"}


def copy_run(run: Path) -> None:
    data = json.loads((run / "results.json").read_text("utf-8"))["data"]
    missing = [name for name in IMAGES if not (run / "figures" / f"{name}.png").is_file()]
    if data["source"] not in SOURCES or data["evaluated_on"] != "test images" or missing:
        raise SystemExit(
            f"{run} is not a whole CIFAR-10 run: {data['source']}, evaluated on "
            f"{data['num_test']:,} {data['evaluated_on']}, without the figures {missing}"
        )
    for folder in (RESULTS, ROOT / "images", WEIGHTS.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for name in NUMBERS:
        shutil.copyfile(run / name, RESULTS / name)
    for name, image in IMAGES.items():
        shutil.copyfile(run / "figures" / f"{name}.png", ROOT / "images" / image)
    stored = torch.load(run / "model.pt", weights_only=True)
    save_weights(WEIGHTS, stored["state_dict"], data=stored["data"], recipe=stored["recipe"])


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
        "Time": f"{seconds['train'] / 60:.0f} minutes of training, "
        f"{seconds['test'] / 60:.0f} of evaluation",
        "Machine": f"{machine['device_name']}, {machine['threads']} threads, "
        f"{machine['precision']}, torch {machine['versions']['torch']}",
    }
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
            "The images are a copy of CIFAR-10 that was encoded again as JPEG, which makes the task "
            "slightly harder: do not compare with figures from the original files.",
            "",
        ]
    lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]
    names = " | ".join(final["class_accuracy"])
    accuracies = " | ".join(f"{value:.1%}" for value in final["class_accuracy"].values())
    lines += [
        "",
        f"| {names} |",
        "| " + "--- | " * len(final["class_accuracy"]),
        f"| {accuracies} |",
    ]
    return "\n".join(line.rstrip() for line in lines)


def render_log(log: str) -> str:
    return f"<details><summary>Log of the run</summary>\n\n```\n{log.strip()}\n```\n</details>"


def render_readme(text: str) -> str:
    """The README with every part between its markers made anew."""
    parts = {
        "results": render_results(json.loads((RESULTS / "results.json").read_text("utf-8"))),
        "log": render_log((RESULTS / "log.txt").read_text("utf-8")),
        "summary": f"```\n{model_summary(CustomResNet())}\n```",
        "augmentation": f"```python\n{inspect.getsource(get_train_aug_transform).strip()}\n```",
    }
    for name, part in parts.items():
        begin, end = f"<!-- {name}: made by scripts/publish.py -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"README.md: {begin} and {end} are needed once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{part}\n{end}{rest.split(end)[1]}"
    return text


def main(run: str = "") -> None:
    if run:
        copy_run(Path(run))
    readme = ROOT / "README.md"
    readme.write_text(render_readme(readme.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
