"""Options of the commands: those of a recipe are made from its fields, so none is written twice.

Nothing here imports torch, so help and refusals are there at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from onecycle.commands.common import path_name
from onecycle.errors import CheckpointError, RunError, UsageError
from onecycle.files import weights_file
from onecycle.paths import check_folder, kind_at
from onecycle.recipe import PRESETS, VAL_SHARE, Recipe, describe, read_recipe, type_of

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
COMPILE_MODES = ("off", "graph", "fused", "fused-graph", "default", "reduce-overhead")


def add_fields(parser: argparse.ArgumentParser, cls: type) -> None:
    """An option for each field of a dataclass of settings, with its type, help and default."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, _ = type_of(hints[field.name])
        option = f"--{field.name.replace('_', '-')}"
        shown = {"default": argparse.SUPPRESS, "help": describe(field).replace("%", "%%")}
        if kind is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, **shown)
        elif choices := get_args(kind):
            parser.add_argument(option, choices=choices, **shown)
        else:
            parser.add_argument(option, type=kind, metavar="N" if kind is int else "X", **shown)


def given(args: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The fields that the command line names."""
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(cls) if hasattr(args, f.name)}


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Where a recipe comes from: a preset, a file, and an option for each of its fields."""
    parser.add_argument("--preset", choices=sorted(PRESETS),
        help="where the recipe starts from (digits for --dataset digits; else what is not given "
        "follows from the number of images)")  # fmt: skip
    parser.add_argument("--recipe", metavar="FILE", type=path_name,
        help="recipe as TOML or JSON, such as results.json of a run; replaces the preset's "
        "values, and the options below replace the file's")  # fmt: skip
    add_fields(parser.add_argument_group("recipe (with the assignment's values)"), Recipe)


def choose_recipe(args: argparse.Namespace) -> Recipe:
    """The preset, replaced by the file of ``--recipe``, replaced by the options.

    Raises:
        UsageError: the file cannot be read, or a value is out of its range.
    """
    is_digits = args.dataset == "digits"
    preset = args.preset or ("digits" if is_digits else None)
    recipe = PRESETS[preset] if preset else Recipe()
    if args.recipe is not None:
        recipe = read_recipe(args.recipe, recipe)
    if is_digits:  # mirroring changes what a digit is
        recipe = dataclasses.replace(recipe, flip_probability=0.0, alternating_flip=False)
    return dataclasses.replace(recipe, **given(args, Recipe))


def add_data(parser: argparse.ArgumentParser, *, train: bool = True) -> None:
    """Which images, and how many of them; for an evaluation the test images alone."""
    add = parser.add_argument_group("images").add_argument
    # fmt: off
    add("--data-dir", default="cifar10", metavar="DIR", type=path_name,
        help="your pictures: a folder per class, with train/ and test/ around them or without, or "
        "a CSV file of file and class; or CIFAR-10's official files (%(default)s)")
    add("--dataset", choices=("cifar10", "digits"), default="cifar10",
        help="cifar10 is what DIR holds; digits are small and need no download (%(default)s)")
    add("--download", action="store_true", help="download CIFAR-10 if DIR does not have it")
    add("--val-share", type=float, default=VAL_SHARE, metavar="X",
        help="share of each class to evaluate on if your pictures are not split (%(default)s)")
    add("--skip-unreadable", action="store_true", help="leave out pictures that cannot be read")
    add("--cache-dir", metavar="DIR", type=path_name,
        help="where decoded pictures are kept (the user's cache)")
    if train:
        add("--val", type=int, metavar="N",
            help="hold N training images out and evaluate on them instead of the test images")
        add("--limit-train", type=int, metavar="N",
            help="train on N images, with the same share of each class")
    add("--limit-test", type=int, metavar="N",
        help="evaluate on N images, with the same share of each class")
    # fmt: on


def check_data(args: argparse.Namespace, most: Mapping[str, int | None] | None = None) -> None:
    """Refuse numbers of images that cannot be.

    Args:
        args: of the command line.
        most: how many images there are for an option; None: not known yet, so only what is wrong
            for any images is refused.

    Raises:
        UsageError: a number is out of its range.
        StorageError: the folder for decoded pictures cannot be written.
    """
    if most is None and args.cache_dir is not None:
        check_folder(args.cache_dir)
    if not 0 < args.val_share < 1:
        raise UsageError(f"--val-share is {args.val_share}; it must be above 0 and below 1")
    for name in ("val", "limit_train", "limit_test") if most is None else most:
        value, high = getattr(args, name, None), (most or {}).get(name, math.inf)
        if value is not None and not 1 <= value <= high:
            allowed = "1 or more" if high == math.inf else f"from 1 to {high:,}"
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be {allowed}")


def check_input(file: str | os.PathLike, fault: type[RunError], advice: str) -> None:
    """Refuse a path that is no file to read.

    Args:
        file: to read.
        fault: the type of the error.
        advice: what to name instead.

    Raises:
        RunError: of the type ``fault``: it is missing, no file, or may not be read.
    """
    try:
        kind = kind_at(file)
    except OSError as error:
        raise fault(f"{file} cannot be read: {error.strerror}; {advice}") from error
    if kind != "file":
        found = {None: "does not exist", "folder": "is a folder"}.get(kind, "is no file")
        raise fault(f"{file} {found}; {advice}")
    if not os.access(file, os.R_OK):
        raise fault(f"{file} cannot be read: Permission denied; {advice}")


def weights_of(given: str | os.PathLike) -> Path:
    """The file of weights that is named, by itself or by the folder of its run.

    Raises:
        CheckpointError: it is missing.
    """
    file = weights_file(given)
    check_input(file, CheckpointError, "give a .safetensors file, or the folder of a finished run")
    return file


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Whose network it is."""
    parser.add_argument("weights", metavar="WEIGHTS", type=path_name,
        help="a .safetensors file, or the folder of a run")  # fmt: skip


def add_model(parser: argparse.ArgumentParser, about: str) -> None:
    """Which network."""
    parser.add_argument("--model", metavar="NAME",
        help=f"custom_resnet, resnet18 or another of torchvision, or package.module:function "
        f"({about})")  # fmt: skip


def add_force(parser: argparse.ArgumentParser) -> None:
    """Whether files may be overwritten."""
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Where and how a training computes."""
    add = add_device(parser)
    # fmt: off
    add("--precision", choices=PRECISIONS, default="auto",
        help="number format of matrix products; auto is the fastest that the device is built for")
    add("--compile", choices=COMPILE_MODES, default="off",
        help="on a GPU: faster steps, with default and reduce-overhead after a slow start; graph (CUDA "
        "graphs) and fused (our own kernels) start sooner and are not yet measured (%(default)s)")
    add("--augmentation", choices=("batched", "albumentations"), default="batched",
        help="whole batches on the device, or image by image in a loader (%(default)s)")
    add("--workers", type=int, default=0, metavar="N",
        help="processes that load images for albumentations (%(default)s)")
    # fmt: on


def add_device(parser: argparse.ArgumentParser) -> Any:
    """The option of the device, and what adds more to its group."""
    group = parser.add_argument_group("computing")
    group.add_argument("--device", choices=DEVICES, default="auto",
        help="auto is the best that this machine has")  # fmt: skip
    return group.add_argument
