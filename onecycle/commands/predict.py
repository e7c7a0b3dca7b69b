"""onecycle predict: the most probable classes of pictures."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from onecycle.commands.common import complain, custom_resnet
from onecycle.commands.options import check_weights
from onecycle.errors import DataError, StorageError, UsageError
from onecycle.files import to_csv, to_json, write_file

if TYPE_CHECKING:
    from onecycle.results.pictures import Guess

ABOUT = "Classify pictures. Only the classes that the network was trained on can be predicted."
WEIGHTS = Path(__file__).parents[2] / "weights" / "custom_resnet_cifar10.safetensors"
"""The published weights of a clone; an installation does not have them."""
FIGURE_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")
FIGURE_DPI = 120
AT_ONCE = 64  # pictures read before their predictions are shown


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    # fmt: off
    add("pictures", nargs="+", metavar="PICTURE",
        help="of any size: JPEG, PNG, GIF, WebP, BMP, TIFF or PPM")
    add("--weights", type=Path, metavar="FILE",
        help="a .safetensors file of the network (in a clone, the published one)")
    add("--top", type=int, default=5, metavar="N", help="predictions per picture (%(default)s)")
    add("--csv", type=Path, metavar="FILE", help="write a table, one row per prediction")
    add("--json", type=Path, metavar="FILE", help="write JSON, one object per picture")
    add("--figure", type=Path, metavar="FILE",
        help="draw each picture as the network sees it with its predictions; png, pdf, svg or jpg")
    # fmt: on


def check(args: argparse.Namespace) -> None:
    """Refuse what can be refused without torch, and before thousands of pictures are read."""
    if args.top < 1:
        raise UsageError(f"--top is {args.top}; it must be 1 or more")
    if args.figure and args.figure.suffix.lower() not in FIGURE_SUFFIXES:
        raise UsageError(f"--figure is {args.figure}; it must end in {', '.join(FIGURE_SUFFIXES)}")
    for file in (args.csv, args.json, args.figure):
        if file:
            check_writable(file)
    if args.weights is None:
        if not WEIGHTS.exists():
            raise UsageError("name the weights: --weights FILE.safetensors, as a training writes")
        args.weights = WEIGHTS
    check_weights(args.weights)


def check_writable(file: Path) -> None:
    """Refuse a file that could not be written.

    Raises:
        StorageError: it is a folder, or its folder is missing or read-only.
    """
    if file.is_dir():
        raise StorageError(f"cannot write {file}: it is a folder")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}") from error


def kept(args: argparse.Namespace) -> str:
    """What is there after an interruption."""
    return "nothing is written"


def main(args: argparse.Namespace) -> int:
    """Classify the pictures; the exit code, that of a DataError if a picture could not be read."""
    from onecycle.data.folder import read_picture
    from onecycle.results.pictures import predict_pictures
    from onecycle.results.weights import load_weights

    weights = load_weights(args.weights)
    model = custom_resnet().from_pretrained(weights)
    names, images, guesses, exit_code = [], [], [], 0
    for start in range(0, len(args.pictures), AT_ONCE):
        read = []
        for name in args.pictures[start : start + AT_ONCE]:
            try:
                read.append(read_picture(name))
                names.append(name)
            except DataError as error:
                complain(error)
                exit_code = error.exit_code
        found = predict_pictures(
            model, read, mean=weights.mean, std=weights.std, classes=weights.classes, top=args.top
        )
        for name, best in zip(names[len(guesses) :], found, strict=True):
            shown = ", ".join(f"{guess.label} {guess.probability:.1%}" for guess in best)
            print(f"{name}: {shown}", flush=True)
        images += read
        guesses += found
    if args.csv:
        write_file(args.csv, to_csv(as_rows(names, guesses)))
    if args.json:
        write_file(args.json, to_json(as_objects(names, guesses)))
    if args.figure:
        write_file(args.figure, as_figure(args.figure, images, guesses, names, weights.source))
    return exit_code


def as_rows(names: list[str], guesses: list[list[Guess]]) -> list[tuple]:
    """A table of the predictions, one row each."""
    rows = [
        (name, rank, *guess)
        for name, best in zip(names, guesses, strict=True)
        for rank, guess in enumerate(best, 1)
    ]
    return [("picture", "rank", "class", "probability"), *rows]


def as_objects(names: list[str], guesses: list[list[Guess]]) -> list[dict]:
    """An object per picture, in plain data."""
    return [
        {
            "picture": name,
            "guesses": [{"class": guess.label, "probability": guess.probability} for guess in best],
        }
        for name, best in zip(names, guesses, strict=True)
    ]


def as_figure(file: Path, images: list, guesses: list, names: list[str], source: str) -> bytes:
    """The content of a file with the pictures and their predictions."""
    from onecycle.results.figures.errors import plot_predictions
    from onecycle.results.folder import to_picture

    figure = plot_predictions(
        images, guesses, names=[Path(name).name for name in names], source=source
    )
    return to_picture(figure, file.suffix[1:].lower(), FIGURE_DPI)
