"""Folders of finished runs without a training, for the tests of what reads them."""

import json

import numpy as np

from onecycle.recipe import Recipe, as_data
from onecycle.records import EpochRecord, History
from onecycle.results.evaluation import evaluate_predictions
from onecycle.results.folder import results_of, write_evaluation


def make_run(
    folder, *, wrong=(), classes=("cat", "dog", "owl"), images=60, epochs=4, name=None,
    recipe=None, files=False, **others,
):  # fmt: skip
    """A finished run that has the images ``wrong`` wrong; ``others`` replace parts of results."""
    labels = np.arange(images) % len(classes)
    said = labels.copy()
    said[list(wrong)] = (labels[list(wrong)] + 1) % len(classes)
    sure = np.linspace(0.6, 0.99, images)  # the confidence of an image rises with its number
    probabilities = np.repeat((1 - sure)[:, None] / (len(classes) - 1), len(classes), axis=1)
    probabilities[np.arange(images), said] = sure
    evaluation = evaluate_predictions(probabilities, labels, classes)
    history = History(
        epochs=[
            EpochRecord(
                epoch=e, lr=0.01 / e, train_loss=2 / e, train_accuracy=1 - 0.5 / e,
                test_loss=2.2 / e, test_accuracy=evaluation.accuracy * (1 - 0.4 / e + 0.4 / epochs),
                train_seconds=1.5, test_seconds=0.1,
            )
            for e in range(1, epochs + 1)
        ]
    )  # fmt: skip
    about = {
        "run": {
            "name": name or folder.name, "author": None, "date": "2026-11-27T06:19:55+01:00",
            "commit": "0123456789ab", "seconds": 1.5 * epochs, "parameters": 6573130,
        },
        "recipe": as_data(recipe or Recipe(epochs=epochs)),
        "data": {
            "source": "made up", "classes": list(classes), "mean": [0.5] * 3, "std": [0.2] * 3,
            "num_train": 100, "num_test": images, "evaluated_on": "test images",
            "augmentation": "batched",
        },
        "parts": {"model": "CustomResNet"},
        "learning_rate": {"lr_max": 0.01, "lr_min": 0.00005, "rule": "so"},
        "machine": {"device": "cpu", "threads": 2, "versions": {"torch": "2.14.1"}},
    }  # fmt: skip
    results = results_of(about, history, evaluation) | {"images_sha256": ["a", "b"]} | others
    write_evaluation(folder, results, evaluation, "")
    if files:
        lines = (folder / "errors.csv").read_text("utf-8").splitlines()
        rows = [f"{line},pictures/{line.split(',')[0]}.png" for line in lines[1:]]
        (folder / "errors.csv").write_text("\n".join([f"{lines[0]},file", *rows, ""]), "utf-8")
    return folder


def change(folder, edit):
    """Replace the results of a folder by what ``edit`` makes of them, in place."""
    file = folder / "results.json"
    results = json.loads(file.read_text("utf-8"))
    edit(results)
    file.write_text(json.dumps(results), "utf-8")
