#!/usr/bin/env python3
"""Evaluate a file of weights on test images; see ``python evaluate.py --help``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

import torch

from models import CustomResNet
from onecycle.commands.common import Parser, command_of, run_command
from onecycle.data.augmentation import get_test_batch_transform
from onecycle.data.dataset import ImageDataset
from onecycle.data.loaders import ResidentLoader
from onecycle.errors import UsageError
from onecycle.results.folder import prepare_folder, write_evaluation
from onecycle.results.grad_cam import explain_errors
from onecycle.results.report import build_report
from onecycle.results.weights import WeightsFile, load_weights
from onecycle.training.compute import describe_machine, get_device, to_device
from onecycle.training_input import in_range, load_dataset
from onecycle.training_results import measure

PRECISION = "float32"  # what published figures are measured in
BATCH_SIZE = 250


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description="Evaluate a file of weights on test images, in float32.")
    add = parser.add_argument
    add("weights", help="a .safetensors file, as in weights/")
    add("--dataset", choices=("cifar10", "digits"), default="cifar10")
    add("--data-dir", default="cifar10", metavar="DIR",
        help="official CIFAR-10 files, or pictures in train/CLASS/ and test/CLASS/ (%(default)s)")  # fmt: skip
    add("--download", action="store_true", help="get CIFAR-10 where DIR has none")
    add(
        "--limit-test",
        type=int,
        metavar="N",
        help="evaluate on N images, the classes in proportion",
    )
    add("--device", default="auto", metavar="D", help="auto, cuda, mps or cpu")
    add("--out", metavar="DIR", help="folder of the report (runs/ and the time)")
    args = parser.parse_args(argv)
    in_range("limit-test", args.limit_test, None)
    args.out = args.out or f"runs/evaluate-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


def load_test_images(args: argparse.Namespace, weights: WeightsFile) -> ImageDataset:
    _, test = load_dataset(args)
    if tuple(test.classes) != weights.classes:
        raise UsageError(
            f"{weights.file} knows {_shortened(weights.classes)}, the images are "
            f"{_shortened(test.classes)}; name the images that it was trained for"
        )
    in_range("limit-test", args.limit_test, len(test))
    return test.sample(args.limit_test)


def _shortened(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})"


def run(args: argparse.Namespace, command: str) -> None:
    weights = load_weights(args.weights)
    device = get_device(args.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean it
    model = to_device(CustomResNet.from_pretrained(weights), device)
    is_new = not Path(args.out).exists()
    out = prepare_folder(args.out)  # before thousands of images are read
    try:
        test = load_test_images(args, weights)
        evaluate_and_write(model, test, weights, device, out, command)
    except BaseException:
        with contextlib.suppress(OSError):
            if is_new:
                out.rmdir()  # refused where something was written
        raise


def evaluate_and_write(
    model: CustomResNet,
    test: ImageDataset,
    weights: WeightsFile,
    device: torch.device,
    out: Path,
    command: str,
) -> None:
    transform = get_test_batch_transform(test.data, weights.mean, weights.std, device=device)
    loader = ResidentLoader(transform, test.targets, BATCH_SIZE, train=False, device=device)
    may_mirror = (weights.recipe.get("flip_probability") or 0) > 0  # else it means something else
    evaluation = measure(model, loader, test, precision=PRECISION, mirrored=may_mirror)
    right = len(test) - len(evaluation.wrong)
    print(
        f"Accuracy {100 * evaluation.accuracy:.2f} % ({right}/{len(test)}), loss "
        f"{evaluation.loss:.4f}: {test.source}, test images, {PRECISION}",
        flush=True,
    )
    about = {
        "recipe": weights.recipe,
        "data": weights.data
        | {"source": test.source, "num_test": len(test), "evaluated_on": "test images"},
        "machine": describe_machine(device, PRECISION),
    }
    if test.source != weights.source:
        about["data"]["trained_on"] = weights.source
    write_evaluation(
        out,
        results=about
        | {
            "weights": {"file": weights.file.name, "sha256": weights.sha256},
            "evaluation": evaluation.summary(),
        },
        tables={"errors": evaluation.error_rows(), "classes": evaluation.class_rows()},
        report=build_report(
            about,
            evaluation,
            test.data,
            title=f"{weights.file.name} on {test.source}",
            grad_cam=explain_errors(model, transform, evaluation),
            command=command,
        ),
    )
    print(f"The report is {out / 'report.html'}, the errors are in {out / 'errors.csv'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    command = command_of("evaluate.py", argv)
    return run_command(lambda: run(parse(argv), command), kept="nothing is written")


if __name__ == "__main__":
    sys.exit(main())
