#!/usr/bin/env python3
"""Take each protection out of a copy of this project, and expect a test to notice.

    python scripts/deliberate_faults.py [WORD ...] [--jobs N]

The faults are in ``deliberate_faults.toml``, beside this file: what each one guards, which text of
which file is replaced by what, and which tests must fail. WORDs choose those whose row, file or
test has one of them.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".toml")
LIMIT_S = 400
"""A test that is not through by then counts as undecided."""
FORKS = multiprocessing.get_context("forkserver")
# Imported once and not for every fault; nothing of the project is among it.
FORKS.set_forkserver_preload(
    ["pytest", "torch", "torchvision", "sklearn.metrics", "sklearn.datasets", "matplotlib.figure"]
)
RED, GREEN, LOST, UNDECIDED = "red", "STILL GREEN", "TEXT NOT FOUND", "UNDECIDED"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One protection taken out."""

    row: str
    """What it protects against."""
    file: str
    text: str
    """Stands exactly once in the file."""
    replacement: str
    test: str
    """The file of the tests that must fail."""
    select: str
    """Which tests of that file, as pytest's -k takes it."""

    def applied(self, root: Path) -> str:
        """The file's content with the fault in it.

        Raises:
            LookupError: the text is not there exactly once, or the replacement is the same.
        """
        content = (root / self.file).read_text("utf-8")
        count = content.count(self.text)
        if count != 1 or self.text == self.replacement:
            raise LookupError(f"{self.file} has this text {count} times: {self.text!r}")
        return content.replace(self.text, self.replacement)


def read_list(file: Path = LIST) -> list[Fault]:
    """The faults, row by row."""
    rows = tomllib.loads(file.read_text("utf-8"))["row"]
    return [Fault(row=row["name"], **fault) for row in rows for fault in row["fault"]]


def copy_project(target: Path) -> None:
    """All files but those that git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    for name in set(filter(None, listed.decode("utf-8", "surrogateescape").split("\0"))):
        if (ROOT / name).is_file():  # else it is deleted, and git was not told
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_tests(fault: Fault, root: Path, said: Path) -> None:
    """In a process of its own: the fault's tests on the copy; ends with pytest's exit code."""
    os.chdir(root)
    # A file changed twice within a second keeps its date, by which Python knows its bytecode.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    output = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import pytest

    options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-W", "ignore"]
    sys.exit(int(pytest.main([*options, fault.test, "-k", fault.select])))


def try_fault(fault: Fault, root: Path) -> tuple[str, str]:
    """Run its tests in a copy with the fault, and mend the copy: the verdict, and a line on it."""
    file = root / fault.file
    before = file.read_bytes()
    try:
        file.write_text(fault.applied(root), "utf-8")
    except (LookupError, OSError) as error:
        return LOST, str(error)
    try:
        with tempfile.TemporaryDirectory() as folder:
            said = Path(folder) / "said"
            process = FORKS.Process(target=run_tests, args=(fault, root, said))
            process.start()
            process.join(LIMIT_S)
            if process.exitcode is None:
                process.kill()
                return UNDECIDED, f"not through after {LIMIT_S} s"
            lines = said.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
    finally:
        file.write_bytes(before)
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    # 1: a test failed; 0: none did; whatever else: no test has spoken.
    verdict = {0: GREEN, 1: RED}.get(process.exitcode, UNDECIDED)
    return verdict, (failed or lines[-1:])[0]


@contextlib.contextmanager
def copies(count: int) -> Iterator[queue.SimpleQueue]:
    """Folders with a copy of the project each, to be taken and given back."""
    with tempfile.TemporaryDirectory(prefix="deliberate-faults-") as folder:
        free: queue.SimpleQueue = queue.SimpleQueue()
        for number in range(count):
            copy_project(Path(folder) / str(number))
            free.put(Path(folder) / str(number))
        yield free


def try_all(faults: Iterable[Fault], jobs: int) -> collections.Counter:
    """Print a line a fault, and count the verdicts."""
    verdicts: collections.Counter = collections.Counter()
    with copies(jobs) as free, concurrent.futures.ThreadPoolExecutor(jobs) as pool:

        def work(fault: Fault) -> tuple[str, str, float]:
            root, begun = free.get(), time.monotonic()
            try:
                return *try_fault(fault, root), time.monotonic() - begun
            finally:
                free.put(root)

        faults = list(faults)
        row = None
        for fault, (verdict, told, seconds) in zip(faults, pool.map(work, faults)):
            if fault.row != row:
                row = fault.row
                print(row)
            verdicts[verdict] += 1
            what = " ".join(fault.text.split())
            print(f"  {verdict:<14} {seconds:5.0f} s  {fault.file}: {what[:60]}", flush=True)
            if verdict != RED:
                print(f"      {fault.test} -k '{fault.select}': {told}", flush=True)
    return verdicts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time (%(default)s)")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}; it must be 1 or more")
    faults = [
        fault
        for fault in read_list()
        if not args.words
        or any(word in f"{fault.row} {fault.file} {fault.test}" for word in args.words)
    ]
    if not faults:
        parser.error(f"no fault has {' or '.join(args.words)} in its row, file or test")
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there
    verdicts = try_all(faults, args.jobs)
    rows = len({fault.row for fault in faults})
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    print(f"{len(faults)} faults in {rows} rows: {counts}")
    return 0 if verdicts[RED] == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
