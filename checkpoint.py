"""The state of an unfinished run: saved whole or not at all, verified before anything is touched.

A file is a header (magic, length and SHA-256 of the rest) and a payload of tensors and plain
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
_HEADER = struct.Struct(">8sQ32s")
_MAGIC = b"\x89RunCkp1"
_KEYS = {"identity", "environment", "notes", "kinds", "parts", "rng"}
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
        self._identity = json.loads(json.dumps(identity))  # tuples are lists there, keys are text
        self._environment = json.loads(json.dumps(environment))
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
        last, failures = self.folder / LAST, []
        if which == "auto":
            files = [file for file in (last, self.folder / PREVIOUS) if os.path.lexists(file)]
        else:
            files = [] if which == "never" else [Path(which)]
        for file in files:
            try:
                state = _read(file)
            except CheckpointError as error:
                failures.append(str(error))
                continue
            if found := list(_compare("", state["identity"], self._identity)):
                raise CheckpointError(
                    f"{file} is of another run: {_first(found)}; give what it was started with, "
                    "name another folder, or start afresh without resuming"
                )
            self.warnings += [f"{failure}; going on from {file}" for failure in failures]
            if found := list(_compare("", state["environment"], self._environment)):
                self.warnings.append(f"not bit-exact from here on: {_first(found)}")
            self.source, self.notes, self._loaded = file, state["notes"], state
            self._last_is_whole = file == last
            return True
        if failures:
            raise CheckpointError(
                f"{'; '.join(failures)}; name another file, or start afresh without resuming"
            )
        return False

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
        state = self._loaded
        before = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
        rng_before = _get_rng()
        try:
            if found := list(_misfits(state, parts, before)):
                raise CheckpointError(f"{self.source} does not fit: {_first(found)}")
            for name, part in parts.items():
                if state["parts"][name] or not before[name]:  # else it was switched off there
                    part.load_state_dict(state["parts"][name])
            _set_rng(state["rng"])
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
        parts = {**parts, **self._extra}
        state = {
            "identity": self._identity,
            "environment": self._environment,
            "notes": self.notes,
            "kinds": _kinds(parts),
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "rng": _get_rng(),
        }
        state = _plain(state)
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
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                file.write(_HEADER.pack(_MAGIC, len(payload), digest))
                file.write(payload)
                file.flush()
                _fsync(file.fileno())
            if self._last_is_whole:  # a damaged one must not take a whole one's place
                self._last_is_whole = False
                os.replace(last, previous)
            os.replace(part, last)
            self._last_is_whole = True
            if os.name == "posix":  # elsewhere a folder cannot be opened
                descriptor = os.open(self.folder, os.O_RDONLY)
                try:
                    _fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise StorageError(
                f"cannot write {last} ({len(payload) / 1e6:,.1f} MB needed, {_free(self.folder)}): "
                f"{error.strerror or error}; make room or name another folder; what was saved "
                "before is still there"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    def discard(self) -> None:
        """Remove the files of a run that is finished and written."""
        for name in (PREVIOUS, LAST) if self._write else ():
            with contextlib.suppress(OSError):  # one that stays harms nobody
                (self.folder / name).unlink()
        self._last_is_whole = False


def _read(path: Path) -> dict[str, Any]:
    """The verified content of a file."""
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(_MAGIC):
                raise CheckpointError(f"{path} is not a checkpoint of this program")
            _, length, digest = _HEADER.unpack(header)
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
    state: dict[str, Any], parts: Mapping[str, Any], current: Mapping[str, Any]
) -> Iterator[str]:
    """What speaks against loading the file's state into the parts, which are at ``current``."""
    yield from _compare("", state["kinds"], _kinds(parts))
    for name in (name for name in parts if name in state["parts"]):
        part, there = parts[name], state["parts"][name]
        if isinstance(part, nn.Module):
            yield from _compare(name, there, current[name])
        elif isinstance(part, torch.optim.Optimizer):
            parameters = [p for group in part.param_groups for p in group["params"]]
            for index, values in there["state"].items():
                for key, value in values.items():
                    if isinstance(value, Tensor) and value.ndim:  # else a counter
                        yield from _compare(f"{name}.{index}.{key}", value, parameters[index])
    yield from _not_finite(state["parts"])


def _kinds(parts: Mapping[str, Any]) -> dict[str, str]:
    return {name: type(part).__name__ for name, part in parts.items()}


def _compare(name: str, there: Any, here: Any) -> Iterator[str]:
    """Each place where the trees of the file and of this run differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**here, **there}:
            path = f"{name}.{key}" if name else str(key)
            if key in here and key in there:
                yield from _compare(path, there[key], here[key])
            else:
                yield f"{path} is only {'here' if key in here else 'in the file'}"
    elif isinstance(here, Tensor) and isinstance(there, Tensor):
        forms = [f"{x.dtype} {tuple(x.shape)}".removeprefix("torch.") for x in (there, here)]
        if forms[0] != forms[1] or there.layout != torch.strided:
            yield f"{name} is {forms[0]} in the file and {forms[1]} here"
    elif isinstance(here, Tensor) != isinstance(there, Tensor) or here != there:
        yield f"{name} is {there!r} in the file and {here!r} here"


def _first(found: list[str]) -> str:
    rest = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + rest


def _plain(value: Any, name: str = "state") -> Any:
    """The same for ``weights_only=True`` and for machines without this one's devices."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(_plain(x, name) for x in value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name} is neither a tensor nor plain data: {type(value).__name__}")


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, Tensor):
        # Both ends of a range are NaN where one value is; and no mask of that size is made.
        ends = torch.aminmax(value) if value.is_floating_point() and value.numel() else ()
        if not all(math.isfinite(end) for end in ends):
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
