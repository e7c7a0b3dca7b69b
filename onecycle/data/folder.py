"""Your own pictures: a folder with a folder per class, or a CSV file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onecycle.data.dataset import (
    CIFAR10_CLASSES,
    HELD_OUT,
    IMAGE_SIZE_PX,
    ImageDataset,
    Images,
    Progress,
)
from onecycle.data.decoded import decode
from onecycle.data.listing import (
    SHOWN,
    Entry,
    Listing,
    class_names,
    few,
    list_pictures,
    relative,
    split_pictures,
)
from onecycle.errors import DataError, UsageError
from onecycle.recipe import VAL_SHARE

NAMES = {"test": "test images", "val": "validation images", "whole": HELD_OUT}
"""What the images to evaluate on are called, by their part of the pictures."""


def load_folder(
    path: str | os.PathLike,
    *,
    image_size: int = IMAGE_SIZE_PX,
    resize: str = "crop",
    val_share: float = VAL_SHARE,
    skip_unreadable: bool = False,
    cache_dir: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Images:
    """Training images and images to evaluate on, from your own pictures.

    Every picture becomes a square image as :func:`read_picture` says. The decoded images are kept
    in the user's cache folder, so that a second start decodes nothing; they are decoded again if a
    name, size or modification time has changed. ``notes`` of the training images say what was
    split and what was left out.

    Args:
        path: a folder with ``train/`` and ``test/`` (or ``val/``, ``valid/``, ``validation/``),
            which have the same two or more class folders; or a folder with one folder per class;
            or a CSV file with the columns ``file`` and ``class``, and maybe ``split``. Pictures in
            sub-folders of a class belong to it.
        image_size: S, height and width of the images, in pixels.
        resize: "crop" takes the largest square in the middle of a picture; "pad" adds black
            borders.
        val_share: share of each class that is held out to evaluate on if nothing is split, above 0
            and below 1; always the same pictures.
        skip_unreadable: leave pictures out that cannot be read.
        cache_dir: where decoded images are kept; None: the user's cache folder.
        progress: called while decoding, with the number of pictures.

    Returns:
        Training images, and images to evaluate on, sorted by class and file name. Their ``source``
        is "CIFAR-10 (image folder)" if the classes are CIFAR-10's, else the folder's name.

    Raises:
        DataError: a folder is missing, a class is empty or in one part alone, or pictures cannot
            be read.
        UsageError: a number is out of its range.
    """
    options = _Options(image_size, resize, val_share, skip_unreadable, cache_dir, progress)
    listing, notes = list_pictures(path), []
    parts, name = _train_and_test(listing, options.val_share, notes)
    loaded = _load(listing, parts, options, notes)
    loaded["test"].name = name
    return loaded["train"], loaded["test"]


def load_test_folder(path: str | os.PathLike, **options) -> ImageDataset:
    """The images to evaluate on alone; ``train/`` may be missing, and is not decoded.

    Args:
        path: as of :func:`load_folder`.
        options: as of :func:`load_folder`.

    Raises:
        DataError: as of :func:`load_folder`.
    """
    options, listing, notes = _Options(**options), list_pictures(path), []
    part = next((part for part in ("test", "val") if part in listing.parts), None)
    if part is not None:
        parts, name = {"test": listing.parts[part]}, NAMES[part]
    else:
        parts, name = _train_and_test(listing, options.val_share, notes)
        del parts["train"]
    test = _load(listing, parts, options, notes)["test"]
    test.name = name
    return test


@dataclass
class _Options:
    image_size: int = IMAGE_SIZE_PX
    resize: str = "crop"
    val_share: float = VAL_SHARE
    skip_unreadable: bool = False
    cache_dir: str | os.PathLike | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise UsageError(f"val_share is {self.val_share}; it must be above 0 and below 1")
        if self.resize not in ("crop", "pad"):
            raise UsageError(f"resize is {self.resize!r}; it must be crop or pad")


def _train_and_test(
    listing: Listing, share: float, notes: list[str]
) -> tuple[dict[str, list[Entry]], str]:
    """The two parts, split if they are not, and what the second is called."""
    parts = listing.parts
    for part in ("test", "val"):
        if part not in parts:
            continue
        if "train" not in parts:
            raise DataError(
                f"{listing.root} has {part} pictures and none to train on; "
                "put some into train/CLASS/"
            )
        if part == "test" and parts.get("val"):
            notes.append(f"the {len(parts['val']):,} pictures of val are not used")
        return {"train": parts["train"], "test": parts[part]}, NAMES[part]
    whole = next(iter(parts.values()))  # train/ alone, or nothing is split
    rest, held_out = split_pictures(whole, listing.root, share)
    notes.append(
        f"{len(held_out):,} of {len(whole):,} pictures are held out to evaluate on, "
        f"{share:.0%} of each class (--val-share)"
    )
    return {"train": rest, "test": held_out}, NAMES["whole"]


def _load(
    listing: Listing, parts: dict[str, list[Entry]], options: _Options, notes: list[str]
) -> dict[str, ImageDataset]:
    classes = class_names(parts)
    entries = [entry for part in parts.values() for entry in part]
    images, why = decode(
        [file for file, _ in entries], options.image_size, options.resize,
        cache_dir=options.cache_dir, progress=options.progress,
    )  # fmt: skip
    names = [relative(file, listing.root) for file, _ in entries]
    skipped = tuple(f"{names[number]} {reason}" for number, reason in why.items())
    if listing.left_out:
        count = len(listing.left_out)
        what = "1 file is no picture" if count == 1 else f"{count:,} files are no pictures"
        notes.append(f"{what}: {few(listing.left_out)}")
    if why:
        found = f"{len(why):,} of {len(entries):,} pictures {{}}: {few(skipped, SHOWN)}"
        if not options.skip_unreadable:
            way_out = "mend or remove them, or leave them out (--skip-unreadable)"
            raise DataError(f"{found.format('cannot be used')}; {way_out}")
        notes.append(found.format("are left out"))
    kept, start = {}, 0
    for part, own in parts.items():
        kept[part] = [number for number in range(start, start + len(own)) if number not in why]
        start += len(own)
    class_names({part: [entries[number] for number in own] for part, own in kept.items()})
    name = (listing.root.resolve().name or "pictures").encode("utf-8", "backslashreplace").decode()
    source = "CIFAR-10 (image folder)" if classes == CIFAR10_CLASSES else name
    return {
        part: ImageDataset(
            _rows(images, own), [classes.index(entries[number][1]) for number in own], classes,
            source, files=[names[number] for number in own], notes=notes, skipped=skipped,
        )
        for part, own in kept.items()
    }  # fmt: skip


def _rows(images: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Neighbouring images as a view, which stays on the disk; others as a copy."""
    first, last = numbers[0], numbers[-1]
    return images[first : last + 1] if last - first + 1 == len(numbers) else images[numbers]
