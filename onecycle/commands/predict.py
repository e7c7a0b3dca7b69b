#!/usr/bin/env python3
"""Say what pictures show: predict.py photo.jpg more/*.png; see ``python predict.py --help``."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path

from models import CustomResNet
from onecycle.commands.common import Parser, complain, run_command
from onecycle.data.folder import read_picture
from onecycle.errors import DataError, StorageError, UsageError
from onecycle.files import write_whole
from onecycle.results.pictures import Guess, plot_predictions, predict_pictures
from onecycle.results.weights import load_weights

WEIGHTS = Path(__file__).resolve().parent / "weights" / "custom_resnet_cifar10.safetensors"
FIGURE_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")
FIGURE_DPI = 120
AT_ONCE = 64  # pictures read before their guesses are shown


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Say what pictures show. The network knows its own classes and nothing else: "
        "whatever a picture shows, the answer is one of them."
    )
    add = parser.add_argument
    # fmt: off
    add("pictures", nargs="+", metavar="PICTURE", help="of any size; see pictures.py for the kinds")
    add("--weights", default=WEIGHTS, type=Path, metavar="FILE",
        help="a safetensors file of the network (the published one)")
    add("--top", type=int, default=5, metavar="N", help="guesses a picture (%(default)s)")
    add("--csv", type=Path, metavar="FILE", help="write a row a guess")
    add("--json", type=Path, metavar="FILE", help="write an object a picture")
    add("--figure", type=Path, metavar="FILE",
        help="draw each picture as the network sees it with its guesses; png, pdf, svg or jpg")
    # fmt: on
    args = parser.parse_args(argv)
    if args.top < 1:
        raise UsageError(f"--top is {args.top}; it must be 1 or more")
    if args.figure and args.figure.suffix.lower() not in FIGURE_SUFFIXES:
        raise UsageError(f"--figure is {args.figure}; it must end in {', '.join(FIGURE_SUFFIXES)}")
    for file in (args.csv, args.json, args.figure):
        if file:
            check_writable(file)
    return args


def check_writable(file: Path) -> None:
    """Refused before thousands of pictures are read, not after."""
    try:
        if file.is_dir():
            raise StorageError(f"cannot write {file}: it is a folder")
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}") from error


def run(args: argparse.Namespace) -> int:
    weights = load_weights(args.weights)
    model = CustomResNet.from_pretrained(weights)
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
            model,
            read,
            mean=weights.mean,
            std=weights.std,
            classes=weights.classes,
            top=args.top,
        )
        for name, best in zip(names[len(guesses) :], found, strict=True):
            shown = ", ".join(f"{guess.label} {guess.probability:.1%}" for guess in best)
            print(f"{name}: {shown}", flush=True)
        images += read
        guesses += found
    if args.csv:
        write(args.csv, as_csv(names, guesses))
    if args.json:
        write(args.json, as_json(names, guesses))
    if args.figure:
        write(
            args.figure, as_figure(args.figure.suffix[1:], images, guesses, names, weights.source)
        )
    return exit_code


def as_csv(names: list[str], guesses: list[list[Guess]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("picture", "rank", "class", "probability"))
    for name, best in zip(names, guesses, strict=True):
        writer.writerows((name, rank, *guess) for rank, guess in enumerate(best, 1))
    return text.getvalue().encode("utf-8", "surrogateescape")


def as_json(names: list[str], guesses: list[list[Guess]]) -> bytes:
    rows = [
        {
            "picture": name,
            "guesses": [{"class": guess.label, "probability": guess.probability} for guess in best],
        }
        for name, best in zip(names, guesses, strict=True)
    ]
    return json.dumps(rows, indent=1).encode() + b"\n"


def as_figure(kind: str, images: list, guesses: list, names: list[str], source: str) -> bytes:
    figure = plot_predictions(
        images, guesses, names=[Path(name).name for name in names], source=source
    )
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
        figure.savefig(stream, format=kind, dpi=FIGURE_DPI)
    return stream.getvalue()


def write(file: Path, content: bytes) -> None:
    """All of the content or nothing."""
    try:
        write_whole(file, content)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}") from error


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code, 3 where a picture could not be read."""
    return run_command(lambda: run(parse(argv)), kept="nothing is written")


if __name__ == "__main__":
    sys.exit(main())
