"""Which pictures a path holds, and of which class each is, before one is decoded."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onecycle.data.pictures import is_picture_name
from onecycle.errors import DataError
from onecycle.files import read_regular
from onecycle.paths import kind_at

SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip
"""What folders of a split are called, in small letters."""
FILE_COLUMNS = ("file", "filename", "file_name", "path", "image", "picture")
CLASS_COLUMNS = ("class", "label", "category", "target")
SHOWN = 10

Entry = tuple[Path, str]
"""A picture's file and its class."""


@dataclass
class Listing:
    """The pictures of a path: ``train`` and ``test``, or ``whole`` where nothing is split."""

    root: Path
    parts: dict[str, list[Entry]]
    left_out: list[str] = field(default_factory=list)
    """Names of what is no picture."""


def list_pictures(path: str | os.PathLike) -> Listing:
    """The pictures of a folder or of a CSV file.

    Args:
        path: a folder with ``train/`` and ``test/`` (or ``val/``, ``valid/``, ``validation/``), or
            with one of them, of folders named after the classes; a folder of such class folders;
            or a CSV file with the columns ``file`` and ``class``, and maybe ``split``. Pictures
            in sub-folders of a class belong to it. Hidden files and folders are passed over.

    Raises:
        DataError: it cannot be read, or holds no classes.
    """
    path = Path(path)
    try:
        return _from_csv(path) if kind_at(path) == "file" else _from_folder(path)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def pictures_below(folder: str | os.PathLike) -> list[Path]:
    """The pictures of a folder and of its sub-folders, in the order of their names.

    Raises:
        DataError: there are none, or it cannot be read.
    """
    listing = Listing(Path(folder), {})
    try:
        found = sorted(_walk(Path(folder), listing))
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    if not found:
        raise DataError(f"{folder} has no pictures")
    return found


def _from_folder(root: Path) -> Listing:
    if (kind := kind_at(root)) != "folder":
        if kind:
            raise DataError(f"{root} is no folder; give one with one folder per class")
        raise DataError(f"{root} does not exist; give a folder with one folder per class")
    listing, folders = Listing(root, {}), _subfolders(root)
    splits = {name: SPLITS[name.lower()] for name in folders if name.lower() in SPLITS}
    if len(splits) < len(folders):  # a class may be called train, as the vehicle
        splits = {name: part for name, part in splits.items() if _subfolders(root / name)}
    for name, part in splits.items():
        if part in listing.parts:
            same = [other for other, its in splits.items() if its == part]
            raise DataError(f"{root} has {' and '.join(same)}, which mean the same; keep one")
        listing.parts[part] = _classes(root / name, listing)
    if not splits:
        listing.parts["whole"] = _classes(root, listing)
    if not any(listing.parts.values()):
        raise DataError(f"{root} has no folders of pictures: {_found(root, listing)}")
    return listing


def _found(root: Path, listing: Listing) -> str:
    """What there is in place of pictures in class folders, and what is expected."""
    expected = "put them into one folder per class, or into train/CLASS/ and test/CLASS/"
    pictures = [entry.name for entry in _entries(root) if is_picture_name(entry.name)]
    if pictures:
        return f"{len(pictures):,} lie directly in it, such as {pictures[0]}; {expected}"
    if listing.left_out:
        return f"it has {few(listing.left_out)}; {expected}"
    return f"nothing is in it; {expected}"


def _classes(folder: Path, listing: Listing) -> list[Entry]:
    """The pictures of each class folder, sorted by class and file."""
    entries = []
    for name in _subfolders(folder):
        found = sorted(_walk(folder / name, listing))
        entries += [(file, name) for file in found]
        if not found:
            raise DataError(f"{folder / name} has no pictures; put some there, or remove it")
    for entry in _entries(folder):
        if not entry.is_dir():
            listing.left_out.append(os.path.relpath(entry.path, listing.root))
    return entries


def _walk(folder: Path, listing: Listing, above: frozenset = frozenset()) -> Iterable[Path]:
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder around it
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(Path(entry.path), listing, above | {here})
        elif is_picture_name(entry.name) and (entry.is_file() or entry.is_symlink()):
            yield Path(entry.path)
        else:
            listing.left_out.append(os.path.relpath(entry.path, listing.root))


def _entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _from_csv(file: Path) -> Listing:
    try:
        with io.StringIO(read_regular(file).decode("utf-8-sig"), newline="") as stream:
            rows = csv.DictReader(stream, dialect=_dialect(stream.read(4096)))
            stream.seek(0)
            columns = {name.strip().lower(): name for name in rows.fieldnames or () if name}
            table = list(rows)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; name a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is no CSV file in UTF-8: {error}") from error
    of_file = next((columns[name] for name in FILE_COLUMNS if name in columns), None)
    of_class = next((columns[name] for name in CLASS_COLUMNS if name in columns), None)
    if of_file is None or of_class is None:
        raise DataError(
            f"{file} has the columns {', '.join(columns) or 'none'}; it must have file and class "
            "in its first line, and may have split"
        )
    parts: dict[str, list[Entry]] = {}
    for number, row in enumerate(table, 2):
        name, label = row[of_file], row[of_class]
        split = (row[columns["split"]] or "").strip().lower() if "split" in columns else "whole"
        part = SPLITS.get(split, split)
        if not name or not label or part not in {*SPLITS.values(), "whole"}:
            raise DataError(
                f"{file}, line {number}: file, class and split must be there; split is train, "
                "test or val"
            )
        parts.setdefault(part, []).append((file.parent / name, label))
    if not parts:
        raise DataError(f"{file} names no picture; give one line per picture")
    return Listing(file.parent, {part: sorted(entries) for part, entries in parts.items()})


def _dialect(start: str) -> type[csv.Dialect]:
    try:
        return csv.Sniffer().sniff(start, delimiters=",;\t")
    except csv.Error:
        return csv.excel


def class_names(parts: Mapping[str, Sequence[Entry]]) -> tuple[str, ...]:
    """The classes of all parts, sorted.

    Args:
        parts: of a :class:`Listing`; each that is used must have the same classes.

    Raises:
        DataError: there are fewer than two, a part lacks some, or two names look the same.
    """
    names = {part: sorted({name for _, name in entries}) for part, entries in parts.items()}
    everything = sorted(set().union(*names.values()))
    for name in everything:
        try:
            name.encode()
        except UnicodeEncodeError:  # refused now, because results and figures could not hold it
            raise DataError(f"the class {name!r} is not UTF-8; rename its folder") from None
    forms = Counter(unicodedata.normalize("NFC", name) for name in everything)
    if twins := [name for name in everything if forms[unicodedata.normalize("NFC", name)] > 1]:
        shown = " and ".join(name.encode("unicode_escape").decode() for name in twins[:2])
        raise DataError(
            f"two classes look the same and are spelled with other Unicode characters: {shown}; "
            "rename one"
        )
    for part, own in names.items():
        others = [name for name in everything if name not in own]
        if others:
            raise DataError(
                f"{part} has no pictures of {few(others)}, which "
                f"{' and '.join(set(names) - {part})} has; both need the same classes"
            )
    if len(everything) < 2:
        raise DataError(
            f"there is one class, {everything[0]}; a classifier needs two or more class folders"
        )
    return tuple(everything)


def split_pictures(
    entries: Sequence[Entry], root: Path, share: float
) -> tuple[list[Entry], list[Entry]]:
    """Hold a share of each class out, always the same pictures.

    Which ones follows from their names alone, so a picture that is added moves few of the others.

    Args:
        entries: pictures with their classes.
        root: names are relative to it.
        share: of each class that is held out, 0..1; at least one picture of each, and not all.

    Raises:
        DataError: a class has one picture.
    """
    counts = Counter(name for _, name in entries)
    single = [name for name, count in counts.items() if count < 2]
    if single:
        raise DataError(
            f"{few(single)}: one picture; a class needs two or more, to train on and to evaluate on"
        )
    least = {name: min(max(1, round(share * count)), count - 1) for name, count in counts.items()}
    order = sorted(entries, key=lambda entry: _hash(relative(entry[0], root)))
    held_out = set()
    for entry in order:
        if least[entry[1]]:
            least[entry[1]] -= 1
            held_out.add(entry)
    rest = [entry for entry in entries if entry not in held_out]
    return rest, [entry for entry in entries if entry in held_out]


def relative(file: Path, root: Path) -> str:
    """A file's name below the folder of the pictures, with / between its parts."""
    return Path(os.path.relpath(file, root)).as_posix()


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names of many, in words."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")
