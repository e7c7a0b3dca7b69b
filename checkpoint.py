"""The state of an unfinished run: saved whole or not at all, verified before anything is touched.

A file is a mark, the SHA-256 of the rest, and the rest: tensors and plain data. Damaged files never
reach ``torch.load``, and nothing in a file is ever executed.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import io
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from errors import CheckpointError, DivergedError, StorageError

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_MAGIC = b"\x89RunCkp1"  # ends in the version of the format
_KEYS = {"identity", "environment", "notes", "kinds", "parts"}


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
        extra: more parts, beside those that the training loop names.
        every_s: seconds between two saves, 0 or more; 0: at each call.
        epoch_every_s: the same for saves at the end of an epoch, where it is less. On a fast GPU
            an epoch takes as long as a save.
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
        epoch_every_s: float = 10.0,
        write: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = Path(folder)
        self.notes: dict[str, Any] = {}
        self.source: Path | None = None
        self.warnings: list[str] = []
        self._identity = json.loads(json.dumps(identity))  # tuples are lists there, keys are text
        self._environment = json.loads(json.dumps(environment))
        self._extra = {**(extra or {}), "random": _Random()}
        self._every_s = every_s
        self._epoch_every_s = min(epoch_every_s, every_s)
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
            CheckpointError: no file is whole, or it is of another run, or a named one is missing.
        """
        self.source, self._loaded, self._last_is_whole = None, None, False
        if self._write:
            for part in self.folder.glob(f".{LAST}.*.part"):  # a killed save left it
                with contextlib.suppress(OSError):
                    part.unlink()
        last, failures = self.folder / LAST, []
        here = [file for file in (last, self.folder / PREVIOUS) if os.path.lexists(file)]
        files = {"auto": here, "never": []}.get(which, [Path(which)])
        for file in files:
            try:
                state = _read(file)
            except CheckpointError as error:
                failures.append(str(error))
                continue
            if found := _first(_compare("", state["identity"], self._identity)):
                raise CheckpointError(
                    f"{file} is of another run: {found}; give what it was started with, "
                    "name another folder, or start afresh without resuming"
                )
            self.warnings += [f"{failure}; going on from {file}" for failure in failures]
            if found := _first(_compare("", state["environment"], self._environment)):
                self.warnings.append(f"not bit-exact from here on: {found}")
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
        parts, state = {**parts, **self._extra}, self._loaded
        before = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
        touched = {}
        try:
            if found := _first(_misfits(state, parts, before)):
                raise ValueError(found)
            _plain(state["parts"])
            for name, part in parts.items():
                if state["parts"][name] or not before[name]:  # else it was switched off there
                    touched[name] = part
                    part.load_state_dict(_for_this_machine(state["parts"][name], before[name]))
        except Exception as error:
            for name, part in touched.items():
                part.load_state_dict(before[name])
            raise CheckpointError(f"{self.source} does not fit: {error}") from error
        self._loaded = None

    @property
    def last(self) -> Path | None:
        """The file that this run can go on from; None where it has none."""
        return self.folder / LAST if self._last_is_whole else self.source

    def save(
        self, parts: Mapping[str, Any], *, epoch_end: bool = False, now: bool = False
    ) -> None:
        """Save, if it is time to, or ``now``.

        Args:
            parts: as for ``restore``.
            epoch_end: an epoch has ended, and ``epoch_every_s`` is the time.
            now: whatever the time since the last save.

        Raises:
            DivergedError: a number in it is not finite; what was saved before stays.
            StorageError: it cannot be written; what was saved before stays.
        """
        due_s = self._epoch_every_s if epoch_end else self._every_s
        if not self._write or not (now or self._clock() - self._saved_s >= due_s):
            return
        parts = {**parts, **self._extra}
        state = {
            "identity": self._identity,
            "environment": self._environment,
            "notes": self.notes,
            "kinds": _kinds(parts),
            "parts": {name: part.state_dict() for name, part in parts.items()},
        }
        try:
            state = _plain(state)
        except ValueError as error:
            found = str(error).removeprefix("parts.")
            raise DivergedError(f"{found}; not saved in {self.folder}") from None
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
                file.write(_MAGIC + digest)
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
            if file.read(len(_MAGIC)) != _MAGIC:
                raise CheckpointError(f"{path} is not a checkpoint of this program")
            digest, payload = file.read(hashlib.sha256().digest_size), file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(payload).digest() != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not what it says")
    stream = io.BytesIO(payload)
    try:
        state = torch.load(stream, weights_only=True)
        if state.keys() != _KEYS:
            raise KeyError(*state)
    except Exception as error:  # damaged and hostile content raises a dozen types
        raise CheckpointError(f"{path} holds something else than the state of a run") from error
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


def _for_this_machine(there: Any, here: Any) -> Any:
    """The state of the file, but how an optimizer computes its steps is settled here."""
    if "param_groups" not in there or len(there["param_groups"]) != len(here["param_groups"]):
        return there  # in the latter case it refuses itself
    groups = [
        group | {key: own[key] for key in ("fused", "foreach", "capturable") if key in own}
        for group, own in zip(there["param_groups"], here["param_groups"])
    ]
    return there | {"param_groups": groups}


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


def _first(found: Iterable[str]) -> str:
    found = list(found)
    rest = [f"and {len(found) - 3} more"] if len(found) > 3 else []
    return "; ".join(found[:3] + rest)


def _plain(value: Any, name: str = "") -> Any:
    """The same as ``weights_only=True`` takes it, without devices; ValueError: not finite."""
    if isinstance(value, Tensor):
        # Both ends of a range are NaN where one value is; and no mask of that size is made.
        value = value.detach().cpu()
        ends = torch.aminmax(value) if value.is_floating_point() and value.numel() else ()
        if not all(end.isfinite() for end in ends):
            raise ValueError(f"{name} has values that are not finite")
        return value
    if isinstance(value, Mapping):
        prefix = f"{name}." if name else ""
        return {key: _plain(item, f"{prefix}{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(_plain(x, name) for x in value)
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not np.isfinite(value):
        raise ValueError(f"{name} is {value}")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name} is neither a tensor nor plain data: {type(value).__name__}")


class _Random:
    """The global generators as one more part."""

    def state_dict(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        kind, keys, *rest = np.random.get_state()
        return {
            "python": (version, torch.tensor(words), gauss),
            "numpy": (kind, torch.tensor(keys.tolist()), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["python"]
        kind, keys, *rest = state["numpy"]
        random.setstate((version, tuple(words.tolist()), gauss))
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state["cuda"])


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what mounted drives say
            raise


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free"
    except OSError:
        return "free space unknown"
