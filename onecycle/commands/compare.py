"""onecycle compare: finished runs side by side on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from onecycle.commands.common import check_output, path
from onecycle.errors import StorageError, UsageError
from onecycle.files import open_regular, write_file

ABOUT = (
    "Compare finished runs on one page. It shows their accuracies with intervals, what differs in "
    "their settings, their curves and classes, and whether a difference from the first run can be "
    "chance."
)
PAGE = "compare.html"
_MARK = b'content="onecycle compare"'
_HEAD_BYTES = 4096


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    # fmt: off
    add("runs", nargs="+", metavar="RUN", type=path,
        help="folder of a finished run; the others are compared with the first")
    add("--out", metavar="FILE", type=path, default=Path(PAGE), help="the page (%(default)s)")
    add("--force", action="store_true", help="replace FILE even if it is no such page")
    # fmt: on


def check(args: argparse.Namespace) -> None:
    """Refuse what can be refused without torch."""
    if len(args.runs) < 2:
        raise UsageError(f"one run, {args.runs[0]}, is named; name two or more to compare")
    check_output(args.out, force=True)
    if not args.force:
        check_page(args.out)


def check_page(file: Path) -> None:
    """Refuse to replace a file that is no page of this command.

    Raises:
        StorageError: it is something else, or cannot be read.
    """
    try:
        with open_regular(file) as stream:
            is_ours = _MARK in stream.read(_HEAD_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror}") from error
    if not is_ours:
        raise StorageError(
            f"{file} is no page of onecycle compare; name another file (--out) or add --force"
        )


def kept(args: argparse.Namespace) -> str:
    """What is there after an interruption."""
    return "nothing is written"


def main(args: argparse.Namespace) -> int:
    """Write the page; the exit code."""
    write_page(args.runs, args.out)
    return 0


def write_page(runs: list[Path], file: Path) -> None:
    """Compare runs in a file, and say where it is."""
    from onecycle.results.compare import compare

    write_file(file, compare(runs, out_dir=file.parent).encode("utf-8", "backslashreplace"))
    print(f"Open {file}", flush=True)
