"""Commands whose n-th call of the system fails, in forked children of this process.

Started with the library of failing_calls.c loaded: failing_calls.py FOLDER COMMAND PART PARTS SHARE.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]

import numpy as np
import safetensors.torch  # noqa: F401 (here, so that no child waits for it)
import small_runs
import torch
from PIL import Image
from test_stopped_trainings import Tiny, result_of

import models
from onecycle import commands, run, run_folder
from onecycle.commands import images  # noqa: F401
from onecycle.results import networks  # noqa: F401
from onecycle.results.grad_cam import ErrorMaps

LIBRARY = ctypes.CDLL(os.environ["LD_PRELOAD"])
LIBRARY.failed.restype = ctypes.c_char_p
LIBRARY.arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
ONCE, FROM_THEN_ON, HALF = range(3)
ERRORS = [
    (errno.EIO, ONCE), (errno.ENOSPC, FROM_THEN_ON), (errno.EACCES, ONCE), (0, HALF),
    (errno.ENOSPC, ONCE), (errno.EINTR, ONCE), (errno.ENOMEM, ONCE),
]  # fmt: skip
"""What fails, and whether only once. A disk that is full stays so."""
CODES = {0, 3, 4, 6}
DEADLINE_S = 60.0


def draw_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for label, name in enumerate(("red", "green", "blue")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3), np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


def command(name: str, folder: Path) -> list[str]:
    """The command line that works in a folder."""
    data = ["--data-dir", str(folder / "pictures"), "--cache-dir", str(folder / "cache")]
    weights = str(folder / "whole" / "model.safetensors")
    return {
        "train": [
            "train", *data, "--epochs", "2", "--batch-size", "8", "--lr-max", "0.01", "--device",
            "cpu", "--init", "none", "--save-minutes", "0", "--out", str(folder / "run"),
        ],
        "evaluate": ["evaluate", weights, *data, "--device", "cpu", "--out", str(folder / "run")],
        "predict": [
            "predict", str(folder / "pictures" / "test"), "--weights", weights, "--force",
            "--csv", str(folder / "run.csv"), "--json", str(folder / "run.json"),
        ],
    }[name]  # fmt: skip


def act(arguments: list[str], folder: Path, number: int, error: int, way: int) -> int:
    """A command in this process, whose call ``number`` fails; what it said goes to a file."""
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    # Neither the program's own file nor what was said there fails.
    LIBRARY.arm(f"{folder}/".encode(), number, error, way)
    code = commands.main(arguments)
    counted = f"{LIBRARY.counted()} {LIBRARY.failed().decode()}"
    LIBRARY.arm(b"", -1, 0, 0)
    (folder / "counted").write_text(counted)
    return code


def left_in(folder: Path) -> dict[str, str]:
    """The files of a finished command, and what they hold but for the time it took."""
    found = {}
    for file in sorted(folder.rglob("*")):
        # Decoded pictures are kept if that is possible, and nothing depends on it.
        is_own = file.parent.name == "cache" and not file.name.endswith(".part")
        if file.is_file() and file.name not in ("said", "counted") and not is_own:
            found[str(file.relative_to(folder))] = ""
    if (folder / "run" / "steps.csv").exists():
        found["result"] = result_of(folder / "run")
    for name in ("run/errors.csv", "run/classes.csv", "run.csv", "run.json"):
        if (folder / name).exists():
            found[name] = small_runs.fingerprint((folder / name).read_text())
    return found


def fresh(folder: Path) -> None:
    """As before the first command, also without decoded pictures."""
    for name in ("run", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for file in folder.glob("*run.*"):
        file.unlink()


def tried(name: str, folder: Path, part: int, parts: int, share: float) -> dict:
    """Every ``parts``-th call of the command fails in turn; what came of it."""
    arguments = command(name, folder)
    failures, counts = [], {"trials": 0, "ended_well": 0, "refused": 0, "kinds": {}}

    def child(arguments, number=0, error=0, way=ONCE):
        call = lambda: act(arguments, folder, number, error, way)  # noqa: E731
        status = small_runs.in_child(call, deadline_s=DEADLINE_S)
        return status, (folder / "said").read_text("utf-8", "replace")

    fresh(folder)
    status, said = child(arguments)
    assert status == 0, said
    wanted = left_in(folder)
    total = int((folder / "counted").read_text().split()[0])
    numbers = [n for n in range(1, total + 1) if n % parts == part]
    if share < 1:
        numbers = random.Random(0).sample(numbers, max(1, round(share * len(numbers))))
    for number in numbers:
        error, way = ERRORS[number % len(ERRORS)]
        fresh(folder)
        (folder / "counted").unlink(missing_ok=True)
        status, said = child(arguments, number, error, way)
        counted = folder / "counted"
        kind = counted.read_text().partition(" ")[2] if counted.exists() else "?"
        about = f"{name}, call {number} ({kind}) fails with {errno.errorcode.get(error, 'half')}"
        counts["trials"] += 1
        counts["kinds"][kind] = counts["kinds"].get(kind, 0) + 1
        counts["ended_well" if status == 0 else "refused"] += 1
        if status not in CODES:
            failures.append(f"{about}: exit code {status}: {said[-300:]}")
        elif "Traceback" in said or (status and not said.endswith("\n")):
            failures.append(f"{about}: said {said[-300:]!r}")
        if status or name != "evaluate":  # which writes into no finished run
            status, said = child(arguments)
        if status != 0:
            failures.append(f"{about}: then the same command ends with {status}: {said[-300:]}")
        elif (found := left_in(folder)) != wanted:
            changed = sorted(key for key, _ in found.items() ^ wanted.items())
            failures.append(f"{about}: then other files are left: {changed}")
    return counts | {"calls": total, "failures": failures}


def main(folder: str, name: str, part: str, parts: str, share: str) -> None:
    own = {"from_pretrained": classmethod(models.CustomResNet.from_pretrained.__func__)}
    models.CustomResNet = type("CustomResNet", (Tiny,), own)
    for figure in set(run.FIGURES) - {"lr_history"}:
        del run.FIGURES[figure]
    run.explain_errors = lambda *args: ErrorMaps("", None, None, None)
    run_folder.build_report = lambda *args, **options: "a report"
    torch.set_num_threads(1)
    small_runs.make()
    place = Path(folder)
    if not (place / "whole").exists():
        draw_pictures(place / "pictures")
        whole = command("train", place)
        whole[-1] = str(place / "whole")
        status = small_runs.in_child(lambda: act(whole, place, 0, 0, ONCE))
        assert status == 0, (place / "said").read_text()
    print(json.dumps(tried(name, place, int(part), int(parts), float(share))))


if __name__ == "__main__":
    main(*sys.argv[1:])
