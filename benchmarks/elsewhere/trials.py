"""Trainings of one library that are killed, spoilt and begun again, each in a forked process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.elsewhere.task import MOMENTS, newest, train_on_image_folder

MOST_SECONDS, MOST_HANDS = 120, 4
FLIPPED_AT = (0.15, 0.3, 0.5, 0.7, 0.85)
"""Of the length of the largest file of a checkpoint."""
FAULT_STEP = 66
"""Where NaN and SIGTERM come: in the third of five epochs, six steps after a save."""


def in_child(
    work: Callable[[], dict | None], scratch: Path, *, closed_stdout: bool = False, **faults
):
    """What a process of its own came to: exit code (-9: SIGKILL), last words, passes, outcome."""
    return wait_for(fork(work, scratch, closed_stdout, **faults), scratch)


def fork(
    work: Callable[[], dict | None], scratch: Path, closed_stdout: bool = False, **faults
) -> int:
    """The process id of a child that does the work with these faults."""
    MOMENTS.begin(**faults)
    for name in ("outcome.json", "stdout", "stderr"):
        (scratch / name).unlink(missing_ok=True)
    if pid := os.fork():
        return pid
    code = 1
    try:
        if closed_stdout:
            read, write = os.pipe()
            os.close(read)
        else:
            write = os.open(scratch / "stdout", os.O_CREAT | os.O_WRONLY)
        os.dup2(write, 1)
        os.dup2(os.open(scratch / "stderr", os.O_CREAT | os.O_WRONLY), 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        code = ending(work, scratch)
    finally:
        os._exit(code)


def ending(work: Callable[[], dict | None], scratch: Path) -> int:
    """Do the work, and end as Python does."""
    code = 0
    try:
        found = work()
        (scratch / "outcome.json").write_text(json.dumps(found))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored while flushing sys.stdout:\n{error!r}", file=sys.stderr)
        code = code or 120
    sys.stderr.flush()
    return code


def wait_for(pid: int, scratch: Path) -> dict[str, Any]:
    """The end of a child; one that takes too long is killed."""
    with limit(pid):
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    words = (
        (scratch / "stderr").read_text("utf-8", "replace") if (scratch / "stderr").exists() else ""
    )
    lines = [line for line in words.replace("\r", "\n").splitlines() if line.strip()]
    found = {
        "exit": code,
        "traceback": "Traceback (most recent call last)" in words,
        "lines": len(lines),
        "last_line": bare(lines[-1], scratch) if lines and code else "",
        "passes": MOMENTS["passes"],
        "trained": MOMENTS["steps"],
        "disk_operations": MOMENTS["disk_operations"],
    }
    with contextlib.suppress(OSError, ValueError):
        found |= json.loads((scratch / "outcome.json").read_text()) or {}
    return found


def bare(line: str, scratch: Path) -> str:
    """A message without the folders of this machine."""
    return re.sub(r"/\S*/site-packages/", "", line.replace(str(scratch), "FOLDER"))[:300]


@contextlib.contextmanager
def limit(pid: int) -> Iterator[None]:
    def end(*_: object) -> None:
        os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


class Trials:
    """All trials of a library.

    Args:
        library: a module with ``train(folder, width)``, see ours.py.
        scratch: an empty folder, below the one that disk.c watches.
    """

    def __init__(self, library: ModuleType, scratch: Path) -> None:
        self.library, self.scratch, self.number = library, scratch, 0
        self.plain = self.run(self.folder())

    def folder(self) -> Path:
        """A new one, and none of those before."""
        shutil.rmtree(self.scratch / f"run-{self.number}", ignore_errors=True)
        self.number += 1
        folder = self.scratch / f"run-{self.number}"
        folder.mkdir()
        return folder

    def run(self, folder: Path, *, width: int = 8, **faults: Any) -> dict[str, Any]:
        found = in_child(lambda: self.library.train(folder, width), self.scratch, **faults)
        if "weights" in found and hasattr(self, "plain"):
            found["same"] = found["weights"] == self.plain["weights"]
        return found

    def newest(self, folder: Path) -> Path | None:
        return newest(folder.glob(self.library.CHECKPOINTS))

    def again(self, folder: Path) -> dict[str, Any]:
        """Resume; as long as that fails, take the newest checkpoint away, and in the end all."""
        for hands in range(MOST_HANDS + 1):
            found = self.run(folder)
            if hands == 0:
                first = found
            if found["exit"] == 0:
                break
            path = self.newest(folder)
            if path is None or hands == MOST_HANDS - 1:
                path = folder
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            folder.mkdir(exist_ok=True)
        return found | {
            "hands": hands,
            **{f"first_{key}": first[key] for key in ("exit", "traceback", "lines", "last_line")},
        }  # fmt: skip

    def kills(self, at_passes: int, at_disk: int, seed: int) -> Iterator[dict[str, Any]]:
        """SIGKILL at random passes of the network and at random operations on files of the run."""
        rng = random.Random(seed)
        moments = [("kill_at_pass", at_passes, "passes"),
                   ("kill_at_disk_operation", at_disk, "disk_operations")]  # fmt: skip
        for field, count, of in moments:
            for number in sorted(rng.sample(range(1, self.plain[of] + 1), count)):
                folder = self.folder()
                killed = self.run(folder, **{field: number})
                yield {"fault": field, "at": number, "of": self.plain[of],
                       "first": killed, "again": self.again(folder)}  # fmt: skip

    def faults(self) -> Iterator[dict[str, Any]]:
        """Each of the other faults."""
        half = self.plain["disk_operations"] // 2
        for name, faults in {
            "disk full": {"full_from_disk_operation": half},
            "NaN loss": {"nan_at_step": FAULT_STEP},
            "SIGTERM": {"term_at_step": FAULT_STEP},
            "closed stdout": {"closed_stdout": True},
        }.items():
            folder = self.folder()
            first = self.run(folder, **faults)
            yield {"fault": name, "first": first, "again": self.again(folder)}
        yield {"fault": "undamaged", "again": self.again(self.broken_off())}
        for name, share in [("truncated", None), *(("bit flip", at) for at in FLIPPED_AT)]:
            folder = self.broken_off()
            damaged = damage(self.newest(folder), share)
            yield {"fault": name, "file": damaged, "again": self.again(folder)}
        yield {"fault": "other network", "first": self.run(self.broken_off(), width=16)}
        yield {"fault": "second run", **self.second_run()}
        yield self.unreadable_picture()

    def broken_off(self) -> Path:
        """The folder of a run that was killed after 60 % of its passes."""
        folder = self.folder()
        self.run(folder, kill_at_pass=int(0.6 * self.plain["passes"]))
        return folder

    def second_run(self) -> dict[str, Any]:
        """While a run stands still in the middle, the same in its folder; then the first goes on."""
        folder, scratch = self.folder(), self.scratch / "first"
        scratch.mkdir(exist_ok=True)
        pid = fork(lambda: self.library.train(folder, 8), scratch,
                   stop_at_pass=self.plain["passes"] // 2)  # fmt: skip
        with limit(pid):
            os.waitpid(pid, os.WUNTRACED)
        second = self.run(folder)
        os.kill(pid, signal.SIGCONT)
        first = wait_for(pid, scratch)
        if "weights" in first:
            first["same"] = first["weights"] == self.plain["weights"]
        return {"first": second, "stopped": first}

    def unreadable_picture(self) -> dict[str, Any]:
        """One of 100 pictures is no picture."""
        folder, pictures, rng = self.folder(), self.scratch / "pictures", np.random.default_rng(0)
        for number in range(100):
            file = pictures / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
        (pictures / "a" / "40.png").write_bytes(b"<html>404</html>")
        own = getattr(self.library, "train_pictures", None)
        read = own or train_on_image_folder
        first = in_child(lambda: read(folder, pictures), self.scratch)
        return {"fault": "unreadable picture", "own_reader": own is not None, "first": first}


def damage(path: Path | None, share: float | None) -> str:
    """Cut the largest file of a checkpoint in half, or flip the bit at a share of it; its name."""
    if path is None:
        raise FileNotFoundError("the run that was broken off left no checkpoint")
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    file = max(files, key=lambda each: each.stat().st_size)
    content = bytearray(file.read_bytes())
    if share is None:
        del content[len(content) // 2 :]
    else:
        content[int(share * len(content))] ^= 1 << 3
    file.write_bytes(content)
    return file.name
