"""The state of an unfinished run, compared with this run before anything is changed."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onecycle.errors import CheckpointError, DivergedError
from onecycle.files import printable
from onecycle.schema import Number, check

from .file import LAST, PREVIOUS, read_state, write_state
from .state import compare, first, for_this_machine, kinds, misfits, plain

MOST_SAID = 1000


class Checkpoint:
    """Saves and restores a run in a folder, in the files ``last.ckpt`` and ``previous.ckpt``.

    At every instant one of the two files is whole. The state of the global random generators of
    Python, numpy and torch (CPU, and the current cuda device) is saved as well.

    Args:
        folder: of the run, made if it is missing.
        identity: plain data that decides what is computed (recipe, digest of the data, ...); a run
            resumes only with the same identity.
        environment: plain data that decides the last bits (threads, versions, device, precision);
            a difference is a line in ``warnings``.
        extra: more parts, by name, beside those that the training loop gives.
        every_s: seconds between two saves, 0 or more; 0: save at each call.
        epoch_every_s: the same at the end of an epoch, ``every_s`` at most. On a fast GPU an epoch
            takes as long as a save.
        write: False in all processes but the first: they only read.
        clock: seconds, never decreasing.

    Attributes:
        notes: plain data that is saved with the state; ``load`` fills it.
        source: the file that was loaded, or None.
        warnings: lines for a person; ``load`` fills it.
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
        self._to_load = True  # the files are not read yet, or newer than what was read
        self._last_is_whole = False

    def load(self, which: str | os.PathLike = "auto") -> bool:
        """Read and verify the files of a stopped run; ``restore`` loads them into the parts.

        Args:
            which: "auto" for the newest whole file in the folder, if there is one; "never" for a
                fresh start; or a file.

        Returns:
            Whether there is a state to resume from.

        Raises:
            CheckpointError: there are files and none is whole; or the file is of another run; or a
                named file is missing.
        """
        self.source, self._loaded, self._last_is_whole = None, None, False
        self._to_load = False
        if self._write:
            for part in self.folder.glob(f".{LAST}.*.part"):  # a killed save left it
                with contextlib.suppress(OSError):
                    part.unlink()
        last, failures = self.folder / LAST, []
        here = [file for file in (last, self.folder / PREVIOUS) if os.path.lexists(file)]
        files = {"auto": here, "never": []}.get(which, [Path(which)])
        for file in files:
            try:
                state = read_state(file)
            except CheckpointError as error:
                failures.append(str(error))
                continue
            if found := first(compare("", state["identity"], self._identity)):
                raise CheckpointError(
                    f"{file} is of another run: {found}; use the settings that it was started with, "
                    "name another folder, or start again without resuming"
                )
            self.warnings += [f"{failure}; resuming from {file}" for failure in failures]
            if found := first(compare("", state["environment"], self._environment)):
                self.warnings.append(f"not bit-exact from here on: {found}")
            self.source, self.notes, self._loaded = file, state["notes"], state
            self._last_is_whole = file == last
            return True
        if failures:
            raise CheckpointError(
                f"{'; '.join(failures)}; name another file, or start again without resuming"
            )
        return False

    def restore(
        self, parts: Mapping[str, Any], agree: Callable[[Mapping], Iterable[str]] | None = None
    ) -> None:
        """Load the state into the parts, the extras and the random generators.

        Everything is compared before the first tensor is copied, and if something fails, nothing
        stays changed. If ``load`` was not called, or something was saved since, it is called first.
        Without a state, or when called again, nothing happens.

        Args:
            parts: by name, with ``state_dict`` and ``load_state_dict``; the same as were saved.
            agree: gives each reason why the states of the parts, by name, do not go together.

        Raises:
            CheckpointError: names, shapes or types differ, a number is not finite, or the parts are
                not of one moment; or as ``load`` says.
        """
        if self._to_load:  # a start from nothing would replace it
            self.load()
        self._saved_s = self._clock()
        if self._loaded is None:
            return
        parts, state = {**parts, **self._extra}, self._loaded
        before = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
        touched = {}
        try:
            if found := first(misfits(state, parts, before)):
                raise ValueError(found)
            plain(state["parts"])
            if found := first(agree(state["parts"]) if agree else ()):
                raise ValueError(found)
            for name, part in parts.items():
                if state["parts"][name] or not before[name]:  # else it was switched off there
                    touched[name] = part
                    part.load_state_dict(for_this_machine(state["parts"][name], before[name]))
        except Exception as error:
            for name, part in touched.items():
                part.load_state_dict(before[name])
            said = " ".join(printable(error).split())[:MOST_SAID]
            raise CheckpointError(
                f"{self.source} does not fit: {said}; name another file, or start again without "
                "resuming"
            ) from error
        self._loaded = None

    @property
    def last(self) -> Path | None:
        """The file that this run can resume from, or None."""
        file = self.folder / LAST
        if self._last_is_whole or not self._write:  # the first process wrote it
            return file if file.exists() else self.source
        return self.source

    def save(self, parts: Mapping[str, Any], *, epoch_end: bool = False, now: bool = False) -> bool:
        """Save if it is time to, or ``now``.

        Args:
            parts: as for ``restore``.
            epoch_end: an epoch has ended: ``epoch_every_s`` counts.
            now: save whatever the time since the last save.

        Returns:
            Whether it was saved.

        Raises:
            DivergedError: a number is not finite; the files before stay.
            StorageError: the file cannot be written; the files before stay.
        """
        self._to_load = True  # in all processes alike
        due_s = self._epoch_every_s if epoch_end else self._every_s
        if not self._write or not (now or self._clock() - self._saved_s >= due_s):
            return False
        parts = {**parts, **self._extra}
        state = {
            "identity": self._identity,
            "environment": self._environment,
            "notes": self.notes,
            "kinds": kinds(parts),
            "parts": {name: part.state_dict() for name, part in parts.items()},
        }
        try:
            state = plain(state)
        except ValueError as error:
            found = str(error).removeprefix("parts.")
            raise DivergedError(f"{found}; not saved in {self.folder}") from None
        write_state(self.folder, state, keep_last=self._last_is_whole)
        self._last_is_whole = True
        self._saved_s = self._clock()
        return True

    def discard(self) -> None:
        """Remove the files of a run that is finished and written."""
        if self._write:
            discard(self.folder)
        self._last_is_whole = False


def discard(folder: Path) -> None:
    """Remove the checkpoints of a run that is finished, and what a killed write left."""
    for file in (folder / PREVIOUS, folder / LAST, *folder.glob(".*.part")):
        with contextlib.suppress(OSError):  # a file that stays does no harm
            file.unlink()


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
        kind, keys, position, *rest = state["numpy"]
        check(position, Number(0, len(keys), whole=True), "random.numpy position")  # numpy does not
        random.setstate((version, tuple(words.tolist()), gauss))
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, *rest))
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state["cuda"])
