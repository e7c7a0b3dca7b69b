"""The card of a file of weights, for those who find it without its repository."""

from __future__ import annotations

import hashlib
from pathlib import Path

from models import CustomResNet
from onecycle.results.report.words import percent
from onecycle.results.weights import load_weights

SOURCES = {"CIFAR-10": "CIFAR-10", "CIFAR-10 (image folder)": "CIFAR-10, JPEG copy"}
"""What a data set is called where its figures are published."""


def share(evaluation: dict) -> str:
    """The accuracy of an evaluation with its counts."""
    images, errors = evaluation["images"], evaluation["errors"]
    return f"**{evaluation['accuracy']:.2%}** ({images - errors:,} of {images:,})"


def render_card(file: Path, results: dict, evaluated: dict | None) -> str:
    """The card of a file of weights: what it is, what it was trained on, how good it is, limits.

    Args:
        file: the weights.
        results: the numbers of the run that trained them.
        evaluated: the numbers of ``onecycle evaluate`` on this file, if there are some.
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
        *(f"| {name} | {percent(value, 1)} |" for name, value in final["class_accuracy"].items()),
    ]
    if evaluated:
        measured = evaluated["evaluation"]
        figures = {
            "Test accuracy of this file, in float32": share(measured),
            "The same, averaged with mirrored images (flip TTA)": percent(measured["mirrored_accuracy"]),
            "Test loss of this file": f"{measured['loss']:.4f} nats",
            "Expected calibration error": f"{measured['calibration']['error']:.4f}",
            "Measured on": f"{evaluated['machine']['device_name']}, "
            f"torch {evaluated['machine']['versions']['torch']}",
        } | figures
        scores = [
            "| class | precision | recall | F1 |",
            "| --- | --- | --- | --- |",
            *(
                f"| {s['name']} | {' | '.join(percent(s[k], 1) for k in ('precision', 'recall', 'f1'))} |"
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
from data import read_picture
from models import CustomResNet
from onecycle import load_weights
from onecycle.results.pictures import predict_pictures

weights = load_weights("weights/{file}")
model = CustomResNet.from_pretrained(weights)
(guesses,) = predict_pictures(
    model,
    [read_picture("photo.jpg")],
    mean=weights.mean,
    std=weights.std,
    classes=weights.classes,
)
print(guesses[0].label, guesses[0].probability)
```

```
onecycle predict photo.jpg --weights weights/{file}
onecycle evaluate weights/{file} --data-dir path/to/cifar10
```

The second command measures the accuracy again. On the images named above it is the same to the image on
the same machine, and nearly the same elsewhere. On another copy of CIFAR-10 it differs.

To classify your own pictures, use these weights as a
[start](../docs/own_pictures.md#start-from-trained-weights).

## Limits

- The answer is one of the ten classes whatever a picture shows, often with a high probability. There is
  no answer "none of these".
- The network sees 32x32 pixels, the square in the middle of a picture. Small or distant things are lost.
- The training photographs show one thing each, large and centred. Other pictures are another task.
- It is a single run with one seed. Nothing was measured on noise, weather, other cameras or drawings.
- It is for study. It knows no people and is not fit for decisions about any.

The images are CIFAR-10's: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images"
(2009). The weights have the licence of this repository.
"""
