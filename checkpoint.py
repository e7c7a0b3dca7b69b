"""The state of an unfinished run: saved whole or not at all, verified before anything is touched.

A file is a header (magic, version, length and SHA-256 of the rest) and a payload of tensors and plain
data. Damaged files never reach ``torch.load``, and nothing in a file is ever executed.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import io
import json
import math
import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from errors import CheckpointError, DivergedError, StorageError

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_HEADER = struct.Struct(">8sHQ32s")
_MAGIC, _VERSION = b"\x89RunCkpt", 1
_KEYS = {"identity", "environment", "notes", "parts", "rng"}
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP)  # what mounted drives say


class Checkpoint:
    """Saves and restores a run in a folder, in ``last.ckpt`` and the one before it.

    At every instant one of the two files is whole. Of what draws random numbers, the global
    generators of Python, numpy and torch (CPU, and the current cuda device) are kept.

    Args:
        folder: the run's, made where it is missing.
        identity: plain data that decides what is computed (recipe, data and its digest, ...); a
            run goes on only with the same.
        environment: plain data that decides the last bits (threads, versions, device, precision);
            a difference is a line in ``warnings``.
        extra: more objects with ``state_dict`` and ``load_state_dict``, kept with the parts that
            the training loop names.
        every_s: seconds between two saves, 0 or more; 0: at each call.
        write: False in all processes but the first: they only read.
        clock: seconds, never going back.

    Attributes:
        notes: plain data that goes into the file with the next save; what a loaded one holds.
        source: the file that was loaded, or None.
        warnings: lines for a person, filled by ``load``.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        identity: Mapping[str, Any],
        environment: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        every_s: float = 600.0,
        write: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = Path(folder)
        self.notes: dict[str, Any] = {}
        self.source: Path | None = None
        self.warnings: list[str] = []
        self._identity = _as_json(identity)
        self._environment = _as_json(environment)
        self._extra = dict(extra or {})
        self._every_s = every_s
        self._write = write
        self._clock = clock
        self._saved_s = clock()
        self._loaded: dict[str, Any] | None = None
        self._last_is_whole = False

    def load(self, which: str | os.PathLike = "auto") -> bool:
        """Read and verify what a stopped run left; the parts get it by ``restore``.

        Args:
            which: "auto" for the newest whole file in the folder, where there is one; "never" for
                a fresh start; or a file.

        Returns:
            Whether there is something to go on from.

        Raises:
            CheckpointError: the file is missing (when it was named), damaged, not a checkpoint or
                of another run; with "auto": no file of those in the folder is whole.
        """
        self.source, self._loaded, self._last_is_whole = None, None, False
        if self._write:
            for part in self.folder.glob(f".{LAST}.*.part"):  # a killed save left it
                with contextlib.suppress(OSError):
                    part.unlink()
        if which == "never":
            return False
        last = self.folder / LAST
        if which == "auto":
            files = [file for file in (last, self.folder / PREVIOUS) if os.path.lexists(file)]
        else:
            files = [Path(which)]
        failures = []
        for file in files:
            try:
                state = _read(file)
            except CheckpointError as error:
                failures.append(error)
                continue
            self._accept(file, state)
            self._last_is_whole = file == last
            self.warnings += [f"{error}; going on from {file}" for error in failures]
            return True
        if failures:
            hint = "name another file to resume from, or start afresh without resuming"
            raise CheckpointError("; ".join(map(str, failures)) + f"; {hint}")
        return False

    def _accept(self, file: Path, state: dict[str, Any]) -> None:
        if found := list(_compare("", state["identity"], self._identity)):
            raise CheckpointError(
                f"{file} is of another run: {_first(found)}; give what it was started with, "
                "name another folder, or start afresh without resuming"
            )
        if found := list(_compare("", state["environment"], self._environment)):
            self.warnings.append(f"not bit-exact from here on: {_first(found)}")
        self.source, self._loaded, self.notes = file, state, state["notes"]

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Bring the parts, the extras and the random generators to where the loaded file was.

        Everything is compared before the first tensor is copied, and nothing stays changed where
        something fails. Without a loaded file, and when called again, it does nothing.

        Args:
            parts: by name, with ``state_dict`` and ``load_state_dict``; those that were saved.

        Raises:
            CheckpointError: names, shapes, types or kinds differ, or a number is not finite.
        """
        self._saved_s = self._clock()
        if self._loaded is None:
            return
        parts = {**parts, **self._extra}
        saved, rng = self._loaded["parts"], self._loaded["rng"]
        before = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
        rng_before = _get_rng()
        try:
            if found := list(_misfits(saved, parts, before)):
                raise CheckpointError(f"{self.source} does not fit: {_first(found)}")
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            _set_rng(rng)
        except Exception as error:
            for name, part in parts.items():
                part.load_state_dict(before[name])
            _set_rng(rng_before)
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.source} cannot be restored: {error}") from error
        self._loaded = None

    def save(self, parts: Mapping[str, Any], *, now: bool = False) -> None:
        """Save, if it is time to, or ``now``.

        Args:
            parts: as for ``restore``.
            now: whatever the time since the last save.

        Raises:
            DivergedError: a number in it is not finite; what was saved before stays.
            StorageError: it cannot be written; what was saved before stays.
        """
        if not self._write or not (now or self._clock() - self._saved_s >= self._every_s):
            return
        state = {
            "identity": self._identity,
            "environment": self._environment,
            "notes": _plain(self.notes, "notes"),
            "parts": {
                name: _plain(part.state_dict(), name)
                for name, part in {**parts, **self._extra}.items()
            },
            "rng": _get_rng(),
        }
        if found := next(_not_finite(state["parts"]), None):
            raise DivergedError(f"{found}: not saved in {self.folder}; lower lr_max")
        stream = io.BytesIO()
        torch.save(state, stream)
        self._replace(stream.getbuffer())
        self._saved_s = self._clock()

    def _replace(self, payload: memoryview) -> None:
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        part = self.folder / f".{LAST}.{os.getpid()}.part"
        digest = hashlib.sha256(payload).digest()
        try:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(part, "wb") as file:
                    file.write(_HEADER.pack(_MAGIC, _VERSION, len(payload), digest))
                    file.write(payload)
                    file.flush()
                    _fsync(file.fileno())
                if self._last_is_whole:  # a damaged one must not take a whole one's place
                    self._last_is_whole = False
                    os.replace(last, previous)
                os.replace(part, last)
                self._last_is_whole = True
                if os.name == "posix":  # else a folder cannot be opened
                    descriptor = os.open(self.folder, os.O_RDONLY)
                    try:
                        _fsync(descriptor)
                    finally:
                        os.close(descriptor)
            finally:
                with contextlib.suppress(OSError):
                    part.unlink()
        except OSError as error:
            raise StorageError(
                f"cannot write {last} ({len(payload) / 1e6:,.1f} MB needed, {_free(self.folder)}): "
                f"{error.strerror or error}; make room or name another folder, then resume from "
                "what was saved before"
            ) from error

    def discard(self) -> None:
        """Remove the files of a run that is finished and written.

        Raises:
            StorageError: they cannot be removed.
        """
        if not self._write:
            return
        try:
            for name in (PREVIOUS, LAST):
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot remove {name} in {self.folder}: {error.strerror or error}"
            ) from error
        self._last_is_whole = False


def _read(path: Path) -> dict[str, Any]:
    """The verified content of a file."""
    try:
        if not path.exists():
            raise CheckpointError(f"{path} is not there")
        if not path.is_file():
            raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'not a file'}")
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
            if header[: len(_MAGIC)] != _MAGIC[: len(header)] or not header:
                raise CheckpointError(f"{path} is not a checkpoint of this program")
            if len(header) < _HEADER.size:
                raise CheckpointError(f"{path} is damaged: it ends in its header")
            _, version, length, digest = _HEADER.unpack(header)
            if version != _VERSION:
                raise CheckpointError(
                    f"{path} has version {version}; this program reads {_VERSION}"
                )
            found = os.fstat(file.fileno()).st_size - _HEADER.size
            if found != length:
                raise CheckpointError(f"{path} is damaged: {found} bytes of {length}")
            payload = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not what its header says")
    stream = io.BytesIO(payload)
    try:
        state = torch.load(stream, weights_only=True)
        whole = set(state) == _KEYS and all(isinstance(value, dict) for value in state.values())
    except Exception as error:  # damaged and hostile content raises a dozen types
        raise CheckpointError(f"{path} holds more than tensors and plain data") from error
    if not whole:
        raise CheckpointError(f"{path} is not a checkpoint of this program")
    return state


def _misfits(
    saved: dict[str, Any], parts: Mapping[str, Any], current: Mapping[str, Any]
) -> Iterator[str]:
    """What speaks against loading ``saved`` into the parts, whose states are ``current``."""
    yield from _compare("", dict.fromkeys(saved), dict.fromkeys(current))
    for name in (name for name in current if name in saved):
        part, there, here = parts[name], saved[name], current[name]
        if isinstance(part, torch.optim.Optimizer):
            there, here = _optimizer_trees(part, there, here)
        elif not isinstance(part, nn.Module):
            if not there or not here:  # a part that is switched off has no state
                continue
            there, here = dict.fromkeys(there), dict.fromkeys(here)
        yield from _compare(name, there, here)
    yield from _not_finite(saved)


def _optimizer_trees(
    optimizer: torch.optim.Optimizer, there: dict[str, Any], here: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both states without what may differ; a fresh one gets the shapes of its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = next(iter(there["state"].values()), {})  # the same for each parameter
    trees = []
    for state in (there, here):
        groups = [
            {**dict.fromkeys(group), "params": str(group["params"])}
            for group in state["param_groups"]
        ]
        trees.append({"param_groups": dict(enumerate(groups)), "state": {}})
    for index, values in there["state"].items():
        trees[0]["state"][index] = values
        if index in range(len(parameters)):
            trees[1]["state"][index] = {
                name: parameters[index] if values.get(name, index).ndim else values[name]
                for name in names
            }
    return trees[0], trees[1]


def _compare(name: str, there: Any, here: Any) -> Iterator[str]:
    """Each place where the trees of the file and of this run differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            path = f"{name}.{key}" if name else str(key)
            if key in here and key in there:
                yield from _compare(path, there[key], here[key])
            else:
                yield f"{path} is only {'here' if key in here else 'in the file'}"
        return
    if isinstance(here, Tensor):
        there, here = (
            (tuple(value.shape), value.dtype, value.layout) if isinstance(value, Tensor) else value
            for value in (there, here)
        )
    if there != here:
        yield f"{name} is {there} in the file and {here} here"


def _first(found: list[str]) -> str:
    rest = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + rest


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same plain data after a round through JSON: tuples are lists, keys are text."""
    return json.loads(json.dumps(dict(values)))


def _plain(value: Any, name: str) -> Any:
    """A state that loads with ``weights_only=True`` on any machine."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item, name) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}; checkpoints hold tensors and plain data")


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            # Both ends of the range are NaN where one value is; no mask of its size is made.
            if not all(math.isfinite(end) for end in torch.stack(torch.aminmax(value)).tolist()):
                yield f"{name} has values that are not finite"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _not_finite(item, name)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{name} is {value}"


def _get_rng() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": (version, torch.tensor(words), gauss),
        "numpy": (kind, torch.tensor(keys.tolist()), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def _set_rng(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free"
    except OSError:
        return "free space unknown"
