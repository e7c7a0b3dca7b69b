#!/usr/bin/env python3
"""Everything that needs a GPU, in one command of under nine minutes: see README.md in this folder.

    DATA=images-or-archive OUT=folder [REFERENCES=folder] python benchmarks/gpu.py

DATA (or CIFAR10_DIR) is a folder of the images or a tar archive of one. Each section is a command
of its own with a time of its own, in the order of importance. They take the mode of the compiler that
``step`` found to be fastest on this card, else the fastest that works there, else none. A section
that fails or takes too long is recorded and the next goes on; one for which no time is left is left
out, and said so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.common import run_benchmark, write_json
from benchmarks.sections import ROOT, Section, sections
from benchmarks.training import load_images
from onecycle.errors import DataError, RunError, UsageError, WorkerError
from onecycle.training.compute import get_compile_mode, get_device

TOTAL_S = 505.0
"""Of the nine minutes; the rest is for starting and ending."""
TRAININGS = ("accuracy.py", "study.py")
"""Scripts of many trainings, which take --most-seconds."""
PROBE_S = 90.0
END_S = 5.0
"""For a section to end what it has started."""
LOG_CHARACTERS = 20_000
"""Of a section's output, its end."""
START_S = 10.0
"""For a campaign of trainings to start, and to write what it has done."""
MODES = ("reduce-overhead", "default")
"""Of the compiler, the one that is expected to be fastest first."""
PROBE = """
import sys, torch
layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
model = torch.compile(torch.nn.Sequential(*layers).cuda(), mode=sys.argv[1], dynamic=False)
for step in range(3):
    with torch.autocast("cuda", torch.float16):
        output = model(torch.randn(4, 3, 8, 8, device="cuda"))
    output.float().sum().backward()
torch.cuda.synchronize()
"""
"""Small steps through the compiler, whose failure is not any section's."""


def fastest_mode(file: Path) -> list[str]:
    """The option for the way in which ``step.py`` found the whole loop to be fastest, if on here."""
    try:
        result = json.loads(file.read_text("utf-8"))
        mode, measured_on = result["summary"]["fastest_loop"], result["machine"]["device_name"]
    except (OSError, ValueError, KeyError):
        return []
    if measured_on != torch.cuda.get_device_name() or "broken_off" in result:
        return []
    return ["--compile", "off" if mode == "eager" else mode]


def without_compiler(section: Section) -> Section:
    """The same section, measuring nothing that torch.compile makes."""
    others = ("--modes", "eager", "graph", "fused", "fused-graph")
    options = others if section.name == "step" else ()
    return dataclasses.replace(section, options=(*section.options, *options))


def find_images(place: str | None, scratch: Path) -> Path:
    """The folder of the images; an archive is unpacked into ``scratch``."""
    if not place:
        raise UsageError("name the images' folder, or an archive of it, in the variable DATA")
    if Path(place).is_dir() or place == "digits":
        return Path(place) if place == "digits" else Path(place).resolve()
    try:
        with tarfile.open(place) as archive:
            archive.extractall(scratch, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{place} is neither a folder nor an archive of one: {error}") from error
    inside = [scratch, *sorted(path for path in scratch.iterdir() if path.is_dir())]
    for folder in inside:
        if (folder / "train").is_dir() or (folder / "cifar-10-batches-py").is_dir():
            return folder
    raise DataError(f"{place} holds neither train/ nor cifar-10-batches-py/")


def probe_compiler(mode: str, seconds: float) -> str:
    """What keeps a mode of ``torch.compile`` from working here; nothing where it works."""
    try:
        get_compile_mode(torch.device("cuda"), mode)
        subprocess.run(
            [sys.executable, "-c", PROBE, mode], check=True, capture_output=True, text=True,
            timeout=seconds,
        )  # fmt: skip
    except UsageError as error:  # which every section would end with
        return str(error)
    except subprocess.TimeoutExpired:
        return f"it took more than {seconds:.0f} s"
    except subprocess.CalledProcessError as error:
        return error.stderr.strip()[-2000:] or f"it ended with {error.returncode}"
    return ""


def working_mode() -> tuple[list[str], str]:
    """The option for the first mode of the compiler that works here, and what keeps the others."""
    said = ""
    for mode in MODES:
        if not (failure := probe_compiler(mode, PROBE_S)):
            return ["--compile", mode], said or "works"
        said += f"{mode}: {failure}\n"
    return [], said


def missing_runs(file: Path) -> int:
    """For how many runs a campaign of trainings had no time."""
    try:
        return len(json.loads(file.read_text("utf-8")).get("missing", ()))
    except (OSError, ValueError):
        return 0


def run_section(
    section: Section, command: Sequence[str], out: Path, log: Path, seconds: float
) -> str:
    """Run one section: "done", or what went wrong, which its results file then says too."""
    file = out / f"{section.name}.json"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [*command, "--out", str(file)], stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=seconds)
            if code == 0:
                missing = missing_runs(file)
                return f"no time for {missing} of its runs" if missing else "done"
            text = log.read_text("utf-8", "replace").strip().splitlines()
            said = f"ended with {code}: {text[-1] if text else 'no message'}"
        except subprocess.TimeoutExpired:
            said = f"ended after {seconds:.0f} s, its time"
        finally:
            _end(process)
    try:
        result = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        result = {"benchmark": section.name, "runs": [], "summary": {}}
    write_json(file, result | {"broken_off": said})
    return said


def _end(process: subprocess.Popen) -> None:
    # With its workers and sub-processes, so that the next section has the GPU for itself: asked
    # first, because a reference is in a group of its own, which only its section can end.
    if process.poll() is None and hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    # fmt: off
    add("--data-dir", default=os.environ.get("DATA") or os.environ.get("CIFAR10_DIR"), metavar="DIR")
    add("--out", type=Path, metavar="DIR",
        default=Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu"))
    add("--references", default=os.environ.get("REFERENCES"), metavar="DIR")
    add("--device", default="cuda", metavar="D", help="cpu to try the command out")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    add("--seconds", type=float, default=TOTAL_S, metavar="X", help="for everything (%(default)s)")
    add("--only", nargs="+", metavar="NAME", default=os.environ.get("ONLY", "").split(),
        help="of the sections (variable ONLY)")
    # fmt: on
    args = made.parse_args(argv)
    args.out = args.out.resolve()  # the sections run in the repository's folder
    get_device(args.device)  # says so where it is missing, before the images are decoded
    references = args.references and str(Path(args.references).resolve())
    chosen = sections(args.seeds, references)
    if unknown := set(args.only or ()) - {section.name for section in chosen}:
        raise UsageError(
            f"--only {' '.join(sorted(unknown))}: the sections are "
            f"{', '.join(section.name for section in chosen)}; references need REFERENCES"
        )
    chosen = [section for section in chosen if not args.only or section.name in args.only]
    done = run_all(chosen, args)
    names = [section.name for section in chosen]
    unfinished = [name for name in names if done["sections"][name]["said"] != "done"]
    if unfinished:
        raise WorkerError(f"not done: {', '.join(unfinished)}; {args.out / 'gpu.json'} says why")
    return done


def earlier(args: argparse.Namespace) -> dict[str, Any]:
    """What an earlier call left in its file, where this one is for a part."""
    file = args.out / "gpu.json"
    return json.loads(file.read_text("utf-8")) if args.only and file.exists() else {}


def command_of(
    section: Section, images: Path, compiled: Sequence[str], args, most_s: float
) -> list:
    """The command line of a section, but for its results file.

    Raises:
        UsageError: it follows a section that has left nothing to go on with.
    """
    more = section.follow(args.out) if section.follow else []
    if section.script in TRAININGS:  # ends by itself, so that it can say what is missing
        more = [*more, "--most-seconds", f"{max(most_s - START_S, 1):.0f}"]
    return [
        sys.executable, "-u", str(Path(__file__).parent / section.script),
        "--data-dir", str(images), "--device", args.device, *compiled, *section.options, *more,
    ]  # fmt: skip


def attempt(
    section: Section, images: Path, compiled: Sequence[str], args, left: float, log: Path
) -> str:
    """Run a section where there is time for it; what became of it."""
    if left < section.least_s:
        return f"left out: {max(left, 0):.0f} s were left, it needs {section.least_s:.0f}"
    most_s = min(left, section.most_s)
    file = args.out / f"{section.name}.json"
    # An earlier file would be gone on with, and be taken for new; one that lacks runs may be.
    if not (args.only and missing_runs(file)):
        file.unlink(missing_ok=True)
    try:
        command = command_of(section, images, compiled, args, most_s)
    except RunError as error:
        return f"left out: {error}"
    return run_section(section, command, args.out, log, most_s)


def run_all(chosen: Sequence[Section], args: argparse.Namespace) -> dict[str, Any]:
    """Run the sections one after the other, while there is time."""
    begin = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    done = {"sections": {}} | earlier(args) | {"benchmark": "gpu", "seconds": args.seconds}
    with tempfile.TemporaryDirectory() as scratch:
        images = find_images(args.data_dir, Path(scratch))
        load_images(str(images), 0)  # decoded once, and kept beside the images
        done["preparing_images_s"] = time.monotonic() - begin
        compiled = []
        if args.device == "cuda":
            compiled, done["compiler"] = working_mode()
            print(f"compiler: {done['compiler']}", flush=True)
            if not compiled:  # the others of its modes would try to compile again
                chosen = [without_compiler(section) for section in chosen]
        for section in chosen:
            started, log = time.monotonic(), Path(scratch) / f"{section.name}.log"
            if compiled:
                compiled = fastest_mode(args.out / "step.json") or compiled
                done["compile"] = compiled[-1]
            left = args.seconds - (started - begin)
            said = attempt(section, images, compiled, args, left, log)
            seconds = time.monotonic() - started
            told = log.read_text("utf-8", "replace")[-LOG_CHARACTERS:] if log.exists() else ""
            told = told.replace(f"{ROOT}{os.sep}", "").replace(f"{args.out}{os.sep}", "")
            done["sections"][section.name] = {"said": said, "seconds": seconds, "log": told}
            write_json(args.out / "gpu.json", done)
            print(f"{section.name}: {said}, {seconds:.0f} s", flush=True)
    return done


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
