"""The files of a run's state: written whole or not at all, verified before anything is read.

A file is a mark, the SHA-256 of the content, and the content: tensors and plain data. Damaged files
never reach ``torch.load``, and nothing in a file is ever executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from onecycle.errors import CheckpointError, StorageError
from onecycle.files import open_regular, sync
from onecycle.paths import free_space
from onecycle.schema import DEEPEST, NAME, PLAIN, Anything, Misfit, Named, check

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_MAGIC = b"\x89RunCkp1"  # ends in the version of the format
MOST_BYTES = 1 << 36
BOXES = (dict, list, tuple)
_PLAIN = Named(PLAIN)
STATE = {"identity": _PLAIN, "environment": _PLAIN, "notes": _PLAIN, "kinds": Named(NAME)}
STATE["parts"] = Named(Anything(dict))


def read_state(path: Path) -> dict[str, Any]:
    """The verified state in a file.

    Args:
        path: a file that :func:`write_state` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    try:
        with open_regular(path, MOST_BYTES) as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise CheckpointError(f"{path} is not a checkpoint of this program")
            digest = file.read(hashlib.sha256().digest_size)
            if (
                hashlib.file_digest(file, hashlib.sha256).digest() != digest
            ):  # before it fills the memory
                raise CheckpointError(f"{path} is damaged: its SHA-256 does not match")
            file.seek(len(_MAGIC) + len(digest))
            payload = file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    stream = io.BytesIO(payload)
    try:
        state = torch.load(stream, weights_only=True)
        _check_size(state, len(payload))
        check(state, STATE)
    except Exception as error:  # damaged and hostile content raises a dozen types
        said = f": {error}" if isinstance(error, Misfit) else ""
        raise CheckpointError(
            f"{path} holds something else than the state of a run{said}"
        ) from error
    return state


def _check_size(state: Any, most: int) -> None:
    """Refuse what unfolds to more than its file: nests, lists in themselves, strided tensors.

    Raises:
        Misfit: as said.
    """
    level, found = [state], 0
    for _ in range(DEEPEST):
        found += len(level)
        if found > most:
            break
        for each in level:
            if isinstance(each, torch.Tensor) and (
                each.layout == torch.strided  # others fit no part
                and each.numel() * each.element_size() > each.untyped_storage().nbytes()
            ):
                raise Misfit("a tensor has more values than the file")
        boxes = [
            list(x.values()) if isinstance(x, dict) else x for x in level if isinstance(x, BOXES)
        ]
        if not boxes:
            return
        if sum(map(len, boxes)) > most:
            break
        level = [each for box in boxes for each in box]
    raise Misfit(f"it is nested more than {DEEPEST} deep, or has more values than the file")


def write_state(folder: Path, state: dict[str, Any], *, keep_last: bool) -> None:
    """Write ``LAST``, whole or not at all; the file before it becomes ``PREVIOUS``.

    Args:
        folder: made if it is missing.
        state: with the keys that :func:`read_state` expects, of types that ``weights_only=True``
            accepts.
        keep_last: the present ``LAST`` is whole; a damaged one must not replace ``PREVIOUS``.

    Raises:
        StorageError: the file cannot be written; the present files stay.
    """
    stream = io.BytesIO()
    torch.save(state, stream)
    payload = stream.getbuffer()
    last, part = folder / LAST, folder / f".{LAST}.{os.getpid()}.part"
    digest = hashlib.sha256(payload).digest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(_MAGIC + digest)
            file.write(payload)
            file.flush()
            sync(file.fileno())
        if keep_last:
            with contextlib.suppress(FileNotFoundError):  # a save that failed half-way moved it
                os.replace(last, folder / PREVIOUS)
        os.replace(part, last)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                sync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise StorageError(
            f"cannot write {last} ({len(payload) / 1e6:,.1f} MB needed, {free_space(folder)}): "
            f"{error.strerror or error}; make room or name another folder; what was saved "
            "before is still there"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
