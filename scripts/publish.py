#!/usr/bin/env python3
"""Publish a finished run, then the evaluation of its weights: publish.py FOLDER.

Of a folder that train.py or the notebook wrote, the numbers go to results/, the pictures to images/
and the weights in half precision to weights/; of one that evaluate.py wrote from these weights, the
numbers go to results/; of a run on the digits the numbers and, to docs/, the report. Then the parts
of both READMEs that are made from results, and the card of the weights, are written; without FOLDER
nothing but these.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.render import render_benchmarks, render_gpu_headline, render_speed
from models import CustomResNet, load_weights, save_weights
from recipe import PRESETS
from transformation import get_train_aug_transform
from utils import model_summary

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
    stored = load_weights(run / "model.safetensors")
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


def share(evaluation: dict) -> str:
    """The accuracy of an evaluation with its counts."""
    images, errors = evaluation["images"], evaluation["errors"]
    return f"**{evaluation['accuracy']:.2%}** ({images - errors:,} of {images:,})"


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
    if evaluated := read_evaluation():
        rows["Published weights, in half precision"] = (
            f"{share(evaluated['evaluation'])}; "
            f"{evaluated['evaluation']['mirrored_accuracy']:.2%} with mirror images"
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
    accuracies = " | ".join(f"{value:.1%}" for value in final["class_accuracy"].values())
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


def render_faults(file: Path) -> str:
    """What scripts/faults.py counted, in a paragraph and a table."""
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
    for name, (what, came) in FAULT_ROWS.items():
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


FAULT_ROWS = {
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
"""What scripts/faults.py does, and what is said of it where nothing failed."""


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


def render_card(file: Path, results: dict, evaluated: dict | None) -> str:
    """The card of a file of weights: what it is, what it was trained on, how good it is, limits.

    Args:
        file: the weights.
        results: the numbers of the run that trained them.
        evaluated: the numbers of evaluate.py on this file, where there are some.
    """
    weights = load_weights(file)
    content, recipe = file.read_bytes(), weights.recipe
    parameters = sum(p.numel() for p in CustomResNet.from_pretrained(weights).parameters())
    machine, final, data = results["machine"], results["final"], weights.data
    facts = {
        "File": f"`{file.name}`, {len(content):,} bytes, safetensors",
        "SHA-256": f"`{hashlib.sha256(content).hexdigest()}`",
        "Network": f"`CustomResNet(num_classes={len(weights.classes)})`, {parameters:,} parameters, "
        "in half precision",
        "Classes, in order": ", ".join(weights.classes),
        "Input": "32x32 RGB as 0..1, minus the mean "
        f"{list(weights.mean)}, divided by {list(weights.std)}",
        "Trained on": f"{SOURCES[weights.source]}: {data['num_train']:,} images",
        "Recipe": f"{recipe['epochs']} epochs, batch {recipe['batch_size']}, peak at epoch "
        f"{recipe['peak_epoch']:g}, LRMAX {results['learning_rate']['lr_max']:.4g}, weight decay "
        f"{recipe['weight_decay']:g}, label smoothing {recipe['label_smoothing']:g}, "
        f"seed {recipe['seed']}, in {machine['precision']}",
    }
    figures = {
        "At the end of training, before the rounding to half precision": "test accuracy "
        f"{final['test_accuracy']:.2%}, loss {final['test_loss']:.4f} nats, in {machine['precision']}",
    }
    scores = [
        "| class | accuracy at the end of training |",
        "| --- | --- |",
        *(f"| {name} | {value:.1%} |" for name, value in final["class_accuracy"].items()),
    ]
    if evaluated:
        measured = evaluated["evaluation"]
        figures = {
            "Test accuracy of this file, in float32": share(measured),
            "The same, with mirror images counted in": f"{measured['mirrored_accuracy']:.2%}",
            "Test loss of this file": f"{measured['loss']:.4f} nats",
            "Expected calibration error": f"{measured['calibration']['error']:.4f}",
            "Measured on": f"{evaluated['machine']['device_name']}, "
            f"torch {evaluated['machine']['versions']['torch']}",
        } | figures
        scores = [
            "| class | precision | recall | F1 |",
            "| --- | --- | --- | --- |",
            *(
                f"| {s['name']} | {s['precision']:.1%} | {s['recall']:.1%} | {s['f1']:.1%} |"
                for s in measured["classes"]
            ),
        ]
    table = ["| | |", "| --- | --- |"]
    row = "| {} | {} |".format
    lines = [
        "# The published weights",
        "",
        "Made by scripts/publish.py from the file and from `results/cifar10/`.",
        "",
        *table,
        *(row(*item) for item in facts.items()),
        "",
        "## Figures",
        "",
        *table,
        *(row(*item) for item in figures.items()),
        "",
        *scores,
        "",
        CARD_USE.format(file=file.name).strip(),
        "",
    ]
    return "\n".join(lines)


CARD_USE = """
## Use

```python
from models import CustomResNet, load_weights
from pictures import read_picture
from predictions import predict_pictures

weights = load_weights("weights/{file}")
model = CustomResNet.from_pretrained(weights)
found = predict_pictures(
    model, [read_picture("photo.jpg")],
    mean=weights.mean, std=weights.std, classes=weights.classes,
)
```

```
python predict.py photo.jpg
python evaluate.py weights/{file} --data-dir path/to/cifar10
```

The second measures the accuracy again: on the images named above, the same to the image on the same
machine and nearly so elsewhere; on another copy of CIFAR-10 it differs.

## Limits

- Whatever a picture shows, the answer is one of the ten classes, often with a high probability.
  There is no answer "none of these".
- It sees 32x32 pixels, the square in the middle of a picture: small or distant things are lost.
- The training photographs show one thing each, large and centred; other pictures are another task.
- One run with one seed. Nothing was measured on noise, weather, other cameras or drawings.
- It is for study. It knows no people and is not fit for decisions about any.

The images are CIFAR-10's: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images"
(2009). The weights have the licence of this repository.
"""


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
