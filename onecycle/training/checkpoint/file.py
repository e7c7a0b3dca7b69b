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
from onecycle.files import sync
from onecycle.paths import free_space, kind_at

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_MAGIC = b"\x89RunCkp1"  # ends in the version of the format
_KEYS = {"identity", "environment", "notes", "kinds", "parts"}


def read_state(path: Path) -> dict[str, Any]:
    """The verified state in a file.

    Args:
        path: a file that :func:`write_state` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    try:
        if kind_at(path) == "other":
            raise CheckpointError(f"{path} is a pipe or a device, and no checkpoint")
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise CheckpointError(f"{path} is not a checkpoint of this program")
            digest, payload = file.read(hashlib.sha256().digest_size), file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 does not match")
    stream = io.BytesIO(payload)
    try:
        state = torch.load(stream, weights_only=True)
        if state.keys() != _KEYS:
            raise KeyError(*state)
    except Exception as error:  # damaged and hostile content raises a dozen types
        raise CheckpointError(f"{path} holds something else than the state of a run") from error
    return state


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
