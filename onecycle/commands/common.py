"""What the command lines share: their parser, and how an error ends one."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from onecycle.errors import RunError, StorageError, UsageError


class Parser(argparse.ArgumentParser):
    """Raises UsageError in one line, where argparse would print its whole usage and exit."""

    def error(self, message: str) -> None:
        raise UsageError(message)

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:
        args = super().parse_args(argv)
        for name, value in vars(args).items():
            if value == []:  # argparse makes this of --name=--
                self.error(f"argument --{name.replace('_', '-')}: expected one argument")
        return args


def complain(line: object) -> None:
    """A line on standard error, behind the name of the program."""
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)


def say(line: object) -> None:
    """The same from the first process of a group alone, and no part of a run's log."""
    if int(os.environ.get("RANK", "0")) == 0:
        complain(line)


def command_of(script: str, argv: list[str] | None) -> str:
    """The command line as a person types it, in letters that every file can hold."""
    command = shlex.join(["python", script, *(sys.argv[1:] if argv is None else argv)])
    return command.encode("utf-8", "backslashreplace").decode()


def run_command(run: Callable[[], int | None], *, kept: str) -> int:
    """Run a program; its exit code, where an error is one line and not a traceback.

    Args:
        run: gives the exit code; None is 0.
        kept: what an interruption leaves behind.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names in scripts that it cannot write
    try:
        return run() or 0
    except RunError as error:
        complain(error)
        return error.exit_code
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # Python would flush it once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        complain(f"standard output was closed; {kept}")
        return StorageError.exit_code
    except KeyboardInterrupt:
        complain(f"interrupted; {kept}")
        return 130
