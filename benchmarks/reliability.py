#!/usr/bin/env python3
"""The same faults in this and other libraries: kills, full disks, damaged checkpoints and more.

Each library trains the same small network on the digits, on one thread of the CPU, written, saved and
resumed as its documentation says (elsewhere/). A run is killed at random moments and begun again; what it
ends with is compared with a run that nothing disturbed. A library that is not installed is left out. The
faults of the disk need Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import new_result, parser, run_benchmark, settle, write_json
from benchmarks.tables import show
from onecycle import __version__
from onecycle.errors import UsageError

LIBRARIES = {
    "ours": "onecycle",
    "lightning_epochs": "lightning",
    "lightning_steps": "torchdata",
    "hf_trainer": "transformers",
    "hf_accelerate": "accelerate",
    "ignite_engine": "ignite",
    "fastai_learner": "fastai",
    "keras_torch": "keras",
}
"""The modules of elsewhere/, and the package that each needs."""
SHIM = Path(__file__).resolve().parent / "elsewhere" / "disk.c"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__, "reliability", device="cpu", precision="float32")
    add = made.add_argument
    add("--only", default=",".join(LIBRARIES), metavar="NAMES", help="of " + ", ".join(LIBRARIES))
    add("--kills", type=int, default=20, metavar="N", help="at random passes of the network (20)")
    add("--disk-kills", type=int, default=10, metavar="N",
        help="at random operations on the run's files (10)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of the moments (0)")
    add("--no-faults", action="store_true", help="only kills")
    args = made.parse_args(argv)
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(LIBRARIES):
        raise UsageError(
            f"--only has {', '.join(sorted(unknown))}; it may have {', '.join(LIBRARIES)}"
        )
    return args


def build_shim(folder: Path) -> Path:
    """The library that counts and spoils what is done to files."""
    shim = folder / "disk.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(SHIM), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(
            f"the faults of the disk need Linux and a C compiler: {getattr(error, 'stderr', error)}"
        ) from None
    return shim


def run_library(name: str, args: argparse.Namespace, shim: Path) -> list[dict[str, Any]]:
    """All trials of a library, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        control, scratch = Path(folder) / "control", Path(folder) / "trials"
        control.write_bytes(bytes(4096))
        disk = scratch / "run-temporary"  # temporary files are on the disk that gets full
        disk.mkdir(parents=True)
        settings = {
            "LD_PRELOAD": str(shim), "FAULT_CONTROL": str(control),
            "FAULT_FOLDER": str(scratch / "run-"), "OMP_NUM_THREADS": "1", "TMPDIR": str(disk),
        }  # fmt: skip
        out = Path(folder) / "runs.json"
        numbers = [args.kills, args.disk_kills, args.seed, not args.no_faults]
        command = [sys.executable, __file__, "--trials", name, str(scratch), str(out)]
        subprocess.run(
            [*command, *(str(int(number)) for number in numbers)],
            env=os.environ | settings, check=True, stdout=sys.stderr,
        )  # fmt: skip
        return json.loads(out.read_text("utf-8"))


def trials(
    name: str, scratch: str, out: str, kills: str, disk: str, seed: str, faults: str
) -> None:
    """What ``run_library`` starts."""
    from benchmarks.elsewhere.trials import Trials

    torch.set_num_threads(1)
    library = importlib.import_module(f"benchmarks.elsewhere.{name}")
    made = Trials(library, Path(scratch))
    about = {
        "title": library.TITLE,
        "about": library.__doc__,
        "documented": library.PROMISE,
        "versions": {package: version_of(package) for package in library.PACKAGES},
        "undisturbed": made.plain,
        "repeated": made.run(made.folder()),
    }
    runs = list(made.kills(int(kills), int(disk), int(seed)))
    runs += made.faults() if int(faults) else []
    Path(out).write_text(json.dumps({"about": about, "runs": runs}), "utf-8")


def version_of(package: str) -> str:
    return __version__ if package == "onecycle" else version(package)


# --- what a program sees of it ------------------------------------------------------------------


def ending(run: dict[str, Any], prefix: str = "") -> str:
    """How a process ended, in words."""
    code = run[f"{prefix}exit"]
    if code == 0:
        return "exit 0"
    if code < 0:
        return f"ended by signal {-code}"
    return f"exit {code}, {'traceback' if run[f'{prefix}traceback'] else 'no traceback'}"


def weights(run: dict[str, Any], undisturbed: dict[str, Any]) -> str:
    """What a run that came to its end has, in words."""
    if not run["finite"]:
        return f"NaN weights after {run['steps']} steps"
    if run["steps"] != undisturbed["steps"]:
        return f"{run['steps']} of {undisturbed['steps']} steps"
    return "same weights" if run["weights"] == undisturbed["weights"] else "other weights"


def after(again: dict[str, Any], undisturbed: dict[str, Any]) -> str:
    """What comes of it when the same is started once more."""
    if again["first_exit"]:
        refused = ending(again, "first_")
        if again["exit"]:
            return f"{refused}, and again"
        return f"{refused}; by hand {weights(again, undisturbed)}"
    return weights(again, undisturbed)


def after_damage(again: dict[str, Any], undamaged: dict[str, Any]) -> str:
    """What comes of a damaged checkpoint, beside what comes of the same that is whole."""
    if again["first_exit"]:
        return f"{ending(again, 'first_')}"
    if again["trained"] > undamaged["trained"]:
        return "falls back to an earlier one"
    if again["weights"] == undamaged["weights"]:
        return "no effect"
    return "trains on with the damaged values"


def summarise_kills(runs: list[dict[str, Any]], undisturbed: dict[str, Any]) -> dict[str, int]:
    ended = [run["again"] for run in runs if run["again"]["exit"] == 0]
    return {
        "kills": len(runs),
        "ended": len(ended),
        "by_hand": sum(run["again"]["hands"] > 0 for run in runs),
        "same_weights": sum(run["weights"] == undisturbed["weights"] for run in ended),
        "other_steps": sum(run["steps"] != undisturbed["steps"] for run in ended),
    }


def summarise_faults(runs: list[dict[str, Any]], undisturbed: dict[str, Any]) -> dict[str, str]:
    """For each fault what the programs' checks found, in words."""
    said = {}
    for run in runs:
        fault, first = run["fault"], run.get("first")
        if fault in ("undamaged", "truncated", "bit flip"):
            continue
        words = ending(first)
        if fault == "unreadable picture":
            words += f" after {first['trained']} steps" + (
                "" if run["own_reader"] else " (torchvision)"
            )
        elif fault == "second run":
            words = "refused: " + words if first["exit"] else "trains beside the first"
            stopped = run["stopped"]
            words += "; the first: " + (
                weights(stopped, undisturbed) if stopped["exit"] == 0 else ending(stopped)
            )
        elif fault == "other network":
            if first["exit"] == 0:
                words = "trains on"
        elif "weights" in first:
            words += f": {weights(first, undisturbed)}"
            if not first["finite"]:
                words += f"; again: {after(run['again'], undisturbed)}"
        else:
            words += f"; again: {after(run['again'], undisturbed)}"
            lost = first["trained"] + run["again"]["trained"] - undisturbed["trained"]
            if fault == "SIGTERM" and lost > 0:
                words += f", {lost} steps trained twice"
        said[fault] = words
    (undamaged,) = (run["again"] for run in runs if run["fault"] == "undamaged")
    for fault in ("truncated", "bit flip"):
        own = [run["again"] for run in runs if run["fault"] == fault]
        found = Counter(after_damage(again, undamaged) for again in own)
        said[fault] = ", ".join(
            f"{count} x {words}" if sum(found.values()) > 1 else words
            for words, count in found.most_common()
        )
    return said


def summarise(libraries: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    summary = {}
    for name, about in libraries.items():
        own = [run for run in runs if run["library"] == name]
        plain = about["undisturbed"]
        row = {"title": about["title"], "versions": about["versions"]}
        for field, of in (("kill_at_pass", "kills"), ("kill_at_disk_operation", "disk_kills")):
            row[of] = summarise_kills([run for run in own if run["fault"] == field], plain)
        rest = [run for run in own if not run["fault"].startswith("kill")]
        row["faults"] = summarise_faults(rest, plain) if rest else {}
        row["repeatable"] = about["repeated"]["weights"] == plain["weights"]
        summary[name] = row
    return summary


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    compute = settle(args)
    torch.set_num_threads(1)
    settings = {"seed": args.seed, "kills": args.kills, "disk_kills": args.disk_kills}
    result = new_result("reliability", compute, settings) | {"libraries": {}}
    if args.out.exists():
        before = json.loads(args.out.read_text("utf-8"))
        if before["settings"] == settings:
            result["runs"], result["libraries"] = before["runs"], before["libraries"]
    with tempfile.TemporaryDirectory() as folder:
        shim = build_shim(Path(folder))
        for name in args.only:
            if importlib.util.find_spec(LIBRARIES[name]) is None:
                print(f"{name} is left out: {LIBRARIES[name]} is not installed")
                continue
            found = run_library(name, args, shim)
            runs = [run for run in result["runs"] if run["library"] != name]
            runs += [{"library": name} | run for run in found["runs"]]
            libraries = result["libraries"] | {name: found["about"]}
            result["libraries"] = {key: libraries[key] for key in LIBRARIES if key in libraries}
            result["runs"] = sorted(runs, key=lambda run: [*LIBRARIES].index(run["library"]))
            result["summary"] = summarise(result["libraries"], result["runs"])
            write_json(args.out, result)
    show(result)
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trials"]:
        trials(*sys.argv[2:])
    else:
        sys.exit(run_benchmark(main))
