"""What the commands share: their parser, and how an error ends one."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from onecycle.errors import RunError, StorageError, UsageError
from onecycle.files import printable, quoted
from onecycle.paths import kind_at, storage_error

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Raises UsageError in one line, where argparse would print its whole usage and exit."""

    def error(self, message: str) -> None:
        raise UsageError(message)

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(getattr(parsed, "command", None), unknown[0]))
        for name, value in vars(parsed).items():
            if value == []:  # argparse makes this of --name=--
                self.error(f"argument --{name.replace('_', '-')}: expected one argument")
        return parsed

    def _unknown(self, command: str | None, word: str) -> str:
        """What is said of a word that no option takes, with the option that is most like it."""
        named = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        asked = named[0][command] if named and command in named[0] else self
        name = word.split("=")[0]
        like = difflib.get_close_matches(name, asked._option_string_actions, 1, 0.8)
        hint = f"did you mean {like[0]}?" if like else f"see {asked.prog} --help"
        return f"{printable(name)} is unknown; {hint}"


def check_environment() -> None:
    """Refuse variables of the environment that a package takes no value of.

    Raises:
        UsageError: tqdm, which reads its variables when it is imported, does not take one.
    """
    names = [name for name in os.environ if name.startswith("TQDM_")]
    try:
        if names:
            import tqdm  # noqa: F401
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"tqdm does not take the value of {' or '.join(names)}: {error}"
        ) from error


def complain(line: object) -> None:
    """Print a line on standard error, after the name of the program."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    print(f"{name}: {printable(line)}", file=sys.stderr)


def say(line: object) -> None:
    """:func:`complain`, but of a group of processes the first alone."""
    if os.environ.get("RANK", "0") in ("0", ""):
        complain(line)


def command_of(arguments: Sequence[str]) -> str:
    """The command line as a person types it, in letters that every file can hold."""
    return " ".join(map(quoted, ["onecycle", *arguments]))


def path_name(text: str) -> str:
    """The type of an option that takes a path.

    Raises:
        argparse.ArgumentTypeError: nothing is named, as by a variable of a script that is not set.
    """
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("it names nothing" if not text else "it holds a NUL byte")
    return text


def path(text: str) -> Path:
    """:func:`path_name` as a ``Path``."""
    return Path(path_name(text))


def check_output(file: Path, force: bool, *, inputs: Sequence[str | os.PathLike] = ()) -> None:
    """Refuse a file that could not be written, or that nobody would want overwritten.

    Args:
        file: to be written.
        force: whether a file that is there may be overwritten.
        inputs: what is read, which is never overwritten.

    Raises:
        StorageError: it is a folder or an input, is there already, or cannot be written.
    """
    try:
        kind = kind_at(file)
        if kind == "folder":
            raise StorageError(f"cannot write {file}: it is a folder")
        if kind and any(os.path.exists(name) and file.samefile(name) for name in inputs):
            raise StorageError(f"cannot write {file}: it is read; name another file")
        if kind == "file" and not force:
            raise StorageError(f"{file} is there already; name another file, or give --force")
        if kind != "other":  # else a pipe or a device, which is written into
            with tempfile.TemporaryFile(dir=Path(os.path.realpath(file)).parent):
                pass
        elif not os.access(file, os.W_OK):
            raise StorageError(f"cannot write {file}: Permission denied")
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(file, error) from error


class _Spared:
    """A standard stream that work does not depend on: after a write that fails it is silent."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:  # its reader is gone, or its disk is full
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._stream is not sys.__stderr__:
                reason = error.strerror or error
                say(f"nothing more is shown, standard output cannot be written: {reason}")

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _spared_streams() -> Iterator[None]:
    """Inside the block nothing ends because what it prints cannot be written."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names in scripts that it cannot write
    sys.stdout, sys.stderr = (stream and _Spared(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def run_command(run: Callable[[], int | None], *, kept: str | Callable[[], str]) -> int:
    """Run a program; an error is one line and an exit code, not a traceback.

    Args:
        run: gives the exit code; None is 0.
        kept: what an interruption leaves behind, or a function that finds out.

    Returns:
        The exit code.
    """
    with _spared_streams():
        try:
            return run() or 0
        except RunError as error:
            complain(error)
            return error.exit_code
        except OSError as error:  # of a path that the system does not take, mostly
            where = "" if error.filename is None else f"{error.filename}: "
            complain(f"{where}{error.strerror or error}")
            return StorageError.exit_code
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
                raise
            complain("the memory does not suffice; lower --batch-size or --image-size")
            return UsageError.exit_code
        except KeyboardInterrupt:
            complain(f"interrupted; {kept if isinstance(kept, str) else kept()}")
            return INTERRUPTED
