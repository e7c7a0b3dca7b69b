"""onecycle predict: the most probable classes of pictures."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onecycle.commands.common import check_output, complain, path, path_name
from onecycle.commands.options import add_force, add_model, weights_of
from onecycle.errors import DataError, UsageError
from onecycle.files import WEIGHTS_FILE, printable, to_csv, to_json, write_file

if TYPE_CHECKING:
    from onecycle.results.pictures import Guess

ABOUT = "Classify pictures. Only the classes that the network was trained on can be predicted."
FIGURE_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")
FIGURE_DPI = 120
AT_ONCE = 64  # pictures read before their predictions are shown


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    # fmt: off
    add("pictures", nargs="+", metavar="PICTURE", type=path_name,
        help="files of any size that Pillow reads, or folders of them")
    add("--weights", type=path, metavar="FILE",
        help="a .safetensors file of the network, or the folder of a run (that of the run where "
        "the command is given; else the published ones)")
    add_model(parser, "what the file of weights says")
    add("--top", type=int, default=5, metavar="N", help="predictions per picture (%(default)s)")
    add("--csv", type=path, metavar="FILE", help="write a table, one row per picture")
    add("--json", type=path, metavar="FILE", help="write JSON, one object per picture")
    add("--figure", type=path, metavar="FILE",
        help="draw each picture as the network sees it with its predictions; png, pdf, svg or jpg")
    add_force(parser)
    # fmt: on


def check(args: argparse.Namespace) -> None:
    """Refuse what can be refused without torch, and before thousands of pictures are read."""
    if args.top < 1:
        raise UsageError(f"--top is {args.top}; it must be 1 or more")
    if args.figure and args.figure.suffix.lower() not in FIGURE_SUFFIXES:
        raise UsageError(f"--figure is {args.figure}; it must end in {', '.join(FIGURE_SUFFIXES)}")
    if args.weights is None and Path(WEIGHTS_FILE).is_file():
        args.weights = Path(WEIGHTS_FILE)
    if args.weights is not None:
        args.weights = weights_of(args.weights)
    outputs = [file for file in (args.csv, args.json, args.figure) if file]
    for number, file in enumerate(outputs):
        inputs = [*args.pictures, *([args.weights] if args.weights else [])]
        check_output(file, args.force, inputs=inputs)
        if os.path.abspath(file) in map(os.path.abspath, outputs[:number]):
            raise UsageError(f"{file} is named for two outputs; give each a file of its own")


def kept(args: argparse.Namespace) -> str:
    """What is there after an interruption."""
    return "nothing is written"


def main(args: argparse.Namespace) -> int:
    """Classify the pictures; the exit code, that of a DataError if a picture could not be read."""
    from onecycle.data.pictures import read_picture
    from onecycle.results.networks import network_of
    from onecycle.results.pictures import predict_pictures
    from onecycle.results.weights import PUBLISHED, load_weights

    weights = load_weights(args.weights or PUBLISHED)
    model, resize = network_of(weights, args.model), weights.recipe.get("resize") or "crop"
    pictures = list(files_of(args.pictures))
    names, images, guesses, exit_code = [], [], [], 0
    for start in range(0, len(pictures), AT_ONCE):
        read = []
        for name in pictures[start : start + AT_ONCE]:
            try:
                read.append(read_picture(name, weights.image_size, resize=resize))
                names.append(name)
            except DataError as error:
                complain(error)
                exit_code = error.exit_code
        found = predict_pictures(
            model, read, mean=weights.mean, std=weights.std, classes=weights.classes, top=args.top
        )
        for name, best in zip(names[len(guesses) :], found, strict=True):
            shown = ", ".join(f"{guess.label} {guess.probability:.1%}" for guess in best)
            print(printable(f"{name}: {shown}"), flush=True)
        images += read if args.figure else []
        guesses += found
    if args.csv:
        top = min(args.top, len(weights.classes))
        write_file(args.csv, to_csv(as_rows(names, guesses, top)))
    if args.json:
        write_file(args.json, to_json(as_objects(names, guesses)))
    if args.figure:
        write_file(args.figure, as_figure(args.figure, images, guesses, names, weights.source))
    return exit_code


def files_of(pictures: list[str]) -> Iterator[str]:
    """The files as they are named, and all pictures of the folders.

    Raises:
        DataError: a folder has no pictures, or cannot be read.
    """
    from onecycle.data.listing import pictures_below

    for name in pictures:
        if os.path.isdir(name):
            yield from map(str, pictures_below(name))
        else:
            yield name


def as_rows(names: list[str], guesses: list[list[Guess]], top: int) -> list[list]:
    """A table of the predictions: a row per picture, its best class first."""
    columns = ["picture", "class", "probability"]
    for place in range(2, top + 1):
        columns += [f"class_{place}", f"probability_{place}"]
    rows = [[name, *(value for guess in best for value in guess)]
            for name, best in zip(names, guesses, strict=True)]  # fmt: skip
    return [columns, *rows]


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
