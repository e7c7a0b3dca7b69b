"""onecycle evaluate: what a file of weights makes of test images."""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from onecycle.commands.common import path
from onecycle.commands.options import (
    add_data,
    add_device,
    add_model,
    add_weights,
    check_data,
    weights_of,
)
from onecycle.errors import StorageError, UsageError
from onecycle.paths import check_folder

if TYPE_CHECKING:
    from torch import nn

    from onecycle.data.dataset import ImageDataset
    from onecycle.results.weights import WeightsFile
    from onecycle.training.compute import Compute

ABOUT = (
    "Evaluate weights on test images. It is done in float32, and the folder gets a report and "
    "tables of errors and classes."
)
PRECISION = "float32"  # what published figures are measured in
BATCH_SIZE = 250


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_weights(parser)
    add_model(parser, "what the file says")
    add_data(parser, train=False)
    add_device(parser)
    parser.add_argument("--out", metavar="DIR", type=path,
        help="folder of the report (runs/ with the time)")  # fmt: skip


def check(args: argparse.Namespace) -> None:
    """Refuse what can be refused without torch."""
    args.weights = weights_of(args.weights)
    check_data(args)
    args.out = Path(args.out or f"runs/evaluate-{time.strftime('%Y%m%d-%H%M%S')}")
    check_folder(args.out)


def kept(args: argparse.Namespace) -> str:
    """What is there after an interruption."""
    return "nothing is written"


def main(args: argparse.Namespace) -> int:
    """Evaluate and write the folder; the exit code."""
    print(f"Evaluating {args.weights}", flush=True)  # torch alone takes seconds
    import torch

    from onecycle.results.folder import prepare_folder
    from onecycle.results.networks import network_of
    from onecycle.results.weights import load_weights
    from onecycle.training.compute import Compute

    weights = load_weights(args.weights)
    compute = Compute.choose(args.device, PRECISION)
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean it
    model = compute.place_model(network_of(weights, args.model))
    if any(args.out.glob("*.ckpt")):
        raise StorageError(f"{args.out} holds a stopped training; name another folder (--out)")
    is_new = not args.out.exists()
    prepare_folder(args.out)  # before thousands of images are read
    try:
        test = load_test_images(args, weights)
        evaluate(args, weights, model, test, compute)
    except BaseException:
        with contextlib.suppress(OSError):
            if is_new:
                args.out.rmdir()  # refused if something was written
        raise
    return 0


def load_test_images(args: argparse.Namespace, weights: WeightsFile) -> ImageDataset:
    """The test images, as many as the options say.

    Raises:
        UsageError: they are of other classes than the weights know.
    """
    from onecycle.commands.images import load_test

    test = load_test(args, weights.image_size, weights.recipe.get("resize") or "crop")
    if tuple(test.classes) != weights.classes:
        raise UsageError(
            f"{weights.file} knows {_shortened(weights.classes)}, the images are "
            f"{_shortened(test.classes)}; name the images that it was trained for"
        )
    check_data(args, {"limit_test": len(test)})
    return test.sample(args.limit_test)


def _shortened(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})"


def evaluate(
    args: argparse.Namespace,
    weights: WeightsFile,
    model: nn.Module,
    test: ImageDataset,
    compute: Compute,
) -> None:
    """Print the accuracy and write the folder."""
    from onecycle.data.batches import get_test_batch_transform
    from onecycle.data.loaders import ResidentLoader, fits_device
    from onecycle.results.evaluation import evaluate_predictions
    from onecycle.results.folder import write_evaluation
    from onecycle.results.grad_cam import explain_errors
    from onecycle.results.report import build_report
    from onecycle.training.inference import predict
    from onecycle.training.progress import Watched

    device = compute.device
    transform = get_test_batch_transform(
        test.data, weights.mean, weights.std,
        device=device, resident=fits_device(2 * test.data.nbytes, device),
    )  # fmt: skip
    loader = ResidentLoader(transform, test.targets, BATCH_SIZE, train=False, device=device)
    may_mirror = (weights.recipe.get("flip_probability") or 0) > 0  # else it means something else
    loader = Watched(loader, "evaluating", len(test))
    found = predict(model, loader, compute=compute, mirrored=may_mirror)
    evaluation = evaluate_predictions(
        found.probabilities, found.labels, test.classes,
        mirrored=found.mirrored, indices=test.indices, files=test.files,
    )  # fmt: skip
    right = len(test) - len(evaluation.wrong)
    print(
        f"Accuracy {100 * evaluation.accuracy:.2f} % ({right}/{len(test)}), loss "
        f"{evaluation.loss:.4f}: {test.source}, {test.name}, {PRECISION}",
        flush=True,
    )
    images = {"source": test.source, "num_test": len(test), "evaluated_on": test.name}
    if test.source != weights.source:
        images["trained_on"] = weights.source
    about = {
        "recipe": weights.recipe, "data": weights.data | images, "machine": compute.describe(),
    }  # fmt: skip
    file = {"file": weights.file.name, "sha256": weights.sha256}
    report = build_report(
        about, evaluation, test.data,
        title=f"{weights.file.name} on {test.source}",
        maps=explain_errors(model, transform, evaluation), command=args.command_line,
    )  # fmt: skip
    write_evaluation(
        args.out, about | {"weights": file, "evaluation": evaluation.summary()}, evaluation, report
    )
    print(f"Open {args.out / 'report.html'}; the errors are in {args.out / 'errors.csv'}")
