"""Files of a run: written completely or not at all, as CSV or JSON; a lock for its folder."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shlex
import socket
import stat
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from onecycle.errors import StorageError
from onecycle.paths import drop_parts, kind_at, part_of, remove, storage_error

LOCK_FILE = ".lock"
WEIGHTS_FILE = "model.safetensors"
MOST_TEXT_BYTES = 1 << 28
"""Above this no table, log or JSON is read: that of 100,000 epochs has a tenth of it."""
_BINARY = getattr(os, "O_BINARY", 0)
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def open_regular(file: str | os.PathLike, most: int = MOST_TEXT_BYTES) -> Iterator[BinaryIO]:
    """A file to read from, never a pipe or a device, which might wait for ever or never end.

    Args:
        file: may be a link.
        most: bytes that it may have.

    Raises:
        OSError: it is missing, no regular file, too large, or cannot be read; ``strerror`` says it.
    """
    try:  # a pipe without a writer is opened at once
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    except ValueError as error:  # a name with a zero in it
        raise OSError(errno.EINVAL, str(error), os.fspath(file)) from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe, a device or the like, and no file")
        if status.st_size > most:
            found = f"it has {status.st_size:,} bytes, and {most:,} at most are read"
            raise OSError(errno.EFBIG, found)
        with open(descriptor, "rb", closefd=False) as stream:
            yield stream
    finally:
        os.close(descriptor)


def read_regular(file: str | os.PathLike, most: int = MOST_TEXT_BYTES) -> bytes:
    """The content of a file; see :func:`open_regular`.

    Raises:
        OSError: as there.
    """
    with open_regular(file, most) as stream:
        content = stream.read(most + 1)  # one of a size that is not known may have more
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes")
    return content


def write_whole(file: Path, content: bytes) -> None:
    """Write a file completely or not at all: an earlier file stays until the new one is complete.

    Args:
        file: its folder exists.
        content: of the new file.

    Raises:
        OSError: it cannot be written; an earlier file is unchanged, and no other file is left.
    """
    drop_parts(file.parent, file.name)
    part = part_of(file)
    try:
        with open(part, "wb") as stream:
            stream.write(content)
            stream.flush()
            sync(stream.fileno())
        os.replace(part, file)
    finally:
        remove(part)


def sync(descriptor: int) -> None:
    """Wait until a file or folder is on the disk (fsync), if the file system supports that.

    Raises:
        OSError: it could not be written.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of mounted drives without fsync
            raise


def weights_file(given: str | os.PathLike) -> Path:
    """The file of weights that is named, by itself or by the folder of its run."""
    return Path(given, WEIGHTS_FILE) if os.path.isdir(given) else Path(given)


def write_file(file: Path, content: bytes) -> None:
    """:func:`write_whole` with a typed error that names the file.

    A link stays one, and its target is written. Into a pipe or a device, such as ``/dev/stdout``,
    the content is written as it is.

    Raises:
        StorageError: it cannot be written; an earlier file is unchanged.
    """
    try:
        if kind_at(file) == "other" or file.parts[:2] in (("/", "dev"), ("/", "proc")):
            with open(file, "wb") as stream:
                stream.write(content)
        else:
            write_whole(Path(os.path.realpath(file)), content)
    except OSError as error:
        raise storage_error(file, error) from error


def quoted(text: str) -> str:
    """A text as a shell's word, in letters that a terminal and a file can hold.

    Returns:
        The word in one line; where it needs escapes, as bash, zsh and POSIX of 2024 know them.
    """
    if not any(steers(letter) for letter in text):
        return shlex.quote(text)
    letters = [
        "".join(f"\\{byte:03o}" for byte in os.fsencode(letter))
        if steers(letter)
        else f"\\{letter}" * (letter in "\\'") or letter
        for letter in text
    ]
    return f"$'{''.join(letters)}'"


def printable(text: object) -> str:
    """A text in one line without anything that would steer a terminal: such letters as escapes."""
    return "".join(
        letter.encode("unicode_escape").decode() if steers(letter) else letter
        for letter in str(text)
    )


def steers(letter: str) -> bool:
    """Whether a letter is none: a control character, half of a pair, or a change of direction."""
    turns = "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    return turns or unicodedata.category(letter) in ("Cc", "Cs")


def to_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as CSV in UTF-8; file names that are not UTF-8 keep their bytes.

    A text that a spreadsheet would compute has an apostrophe before it, as spreadsheets do it.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [_as_text(cell) for cell in row] for row in rows
    )
    return text.getvalue().encode("utf-8", "surrogateescape")


def _as_text(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(tuple("=+-@\t\r")) else cell


def to_json(value: Any) -> bytes:
    """Plain data as indented JSON.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike) -> Iterator[str | None]:
    """Keep other runs out of a folder inside the block.

    The operating system releases the lock when the process ends, even if it is killed.

    Args:
        folder: of the run; it exists.

    Yields:
        None, or a warning if the folder cannot be locked (Windows, some mounted drives), so that
        a second run would not be noticed.

    Raises:
        StorageError: another run uses the folder, or it cannot be written.
    """
    file = Path(folder) / LOCK_FILE
    held: list[int] = []  # the open file; empty when the lock is no longer this process's
    warning = None
    try:
        held.append(_open_locked(file))
    except _Unsupported as error:
        warning = f"{folder} cannot be locked ({error}): do not start a second run in it"
    except StorageError:
        raise
    except OSError as error:
        advice = ""
        if os.path.lexists(file):
            advice = "; if no run of another person is in the folder, remove this file"
        raise StorageError(f"cannot write {file}: {error.strerror or error}{advice}") from error

    def forget() -> None:
        while held:
            with contextlib.suppress(OSError):
                os.close(held.pop())

    if held:
        # A loader worker that survives a killed run must not keep the folder locked.
        os.register_at_fork(after_in_child=forget)
    try:
        yield warning
    finally:
        if held:  # not if nothing was locked, or in a forked child
            with contextlib.suppress(OSError):
                file.unlink()
            forget()


class _Unsupported(Exception):
    pass


def _open_locked(file: Path) -> int:
    try:
        import fcntl
    except ImportError:
        raise _Unsupported("no flock here") from None
    while True:
        # Of a link, the file that it leads to would be emptied.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _HELD:
                    raise StorageError(_refusal(file)) from None
                file.unlink()
                raise _Unsupported(error.strerror or str(error)) from None
            if _is_still(file, descriptor):
                text = {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                }
                os.truncate(descriptor, 0)
                os.write(descriptor, json.dumps(text).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner deleted the file meanwhile


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _refusal(file: Path) -> str:
    try:
        owner = json.loads(read_regular(file, most=10_000))
        who = "process {pid:.20} on {host:.100} since {since:.40}".format(
            **{name: str(owner[name]) for name in ("pid", "host", "since")}
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        who = "another process"
    return f"{file.parent} is in use by {who}: wait for it, stop it, or use another folder (--out)"
