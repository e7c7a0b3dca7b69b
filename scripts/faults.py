#!/usr/bin/env python3
"""Kill, stop, spoil and fool small trainings many times, and count what comes of it.

It writes results/faults/faults.json, in under 15 minutes on two cores. Children are forked from
this process, which has one thread, so that none of them waits for torch to be imported. It ends
with 1 where anything was not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported
    os.environ.setdefault(name, "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

import matplotlib

matplotlib.use("Agg")

import torch
from fault_trials.common import SEED, say
from fault_trials.files import mutations
from fault_trials.footprint import footprint
from fault_trials.stops import kills, signals
from fault_trials.suites import command_lines, evaluation
from fault_trials.values import not_finite

from onecycle.training.compute import describe_machine

OUT = ROOT / "results" / "faults" / "faults.json"

SECTIONS: dict[str, Callable[[float, Path], dict[str, Any]]] = {
    section.__name__: section
    for section in (kills, signals, mutations, command_lines, not_finite, evaluation, footprint)
}


def run_section(name: str, share: float) -> dict[str, Any]:
    """What a section found; what stops it is one of its failures."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of strange pickles
        try:
            found = SECTIONS[name](share, Path(folder))
        except Exception as error:  # noqa: BLE001 - the other sections are to go on
            found = {"failures": [f"stopped by {error!r}"]}
    return found | {"seconds": round(time.perf_counter() - begun, 1)}


def main(argv: list[str] | None = None) -> int:
    """Run the sections, write the file, print a table; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--share", type=float, default=1.0, help="of the full numbers, 0..1")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help=f"({OUT.name})")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = {
        "seed": SEED,
        "share": args.share,
        "machine": describe_machine(torch.device("cpu"), "bfloat16"),
    }
    results["sections"] = {}
    with contextlib.suppress(OSError, ValueError, KeyError):  # sections that are not asked for stay
        before = json.loads(args.out.read_text("utf-8"))
        if {k: before[k] for k in ("seed", "share", "machine")} == json.loads(
            json.dumps({k: results[k] for k in ("seed", "share", "machine")})
        ):
            results["sections"] = before["sections"]
    for name in args.only:
        say(f"{name}: {SECTIONS[name].__doc__.splitlines()[0]}")
        found = run_section(name, args.share)
        results["sections"][name] = found
        for failure in found["failures"]:
            say(f"  FAILED {failure}")
        say(f"  {len(found['failures'])} failures, {found['seconds']:.0f} s")
        results["seconds"] = sum(each["seconds"] for each in results["sections"].values())
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    say("")
    for name, found in results["sections"].items():
        shown = {k: v for k, v in found.items() if isinstance(v, (int, float)) and k != "seconds"}
        numbers = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in shown.items())
        say(f"{name:14} {len(found['failures']):3} failures {found['seconds']:6.1f} s  {numbers}")
    return int(any(results["sections"][name]["failures"] for name in args.only))


if __name__ == "__main__":
    sys.exit(main())
