"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from errors import StorageError

LOCK_FILE = ".lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike) -> Iterator[str | None]:
    """Keep other processes out of the folder of a run while the block lasts.

    The operating system gives the lock free when its process ends, however it ends.

    Args:
        folder: exists.

    Yields:
        None, or a line of warning where the folder cannot be locked (Windows, some mounted
        drives) and a second run would go unnoticed.

    Raises:
        StorageError: another run has the folder, or it cannot be written.
    """
    file = Path(folder) / LOCK_FILE
    held: list[int] = []  # emptied when the number no longer stands for this file
    warning = None
    try:
        held.append(_open_locked(file))
    except _Unsupported as error:
        warning = f"{folder} cannot be locked ({error}): start no second run in it"
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror or error}") from error

    def forget() -> None:
        while held:
            os.close(held.pop())

    if held:
        # A loader worker that outlives a killed run must not keep the folder locked.
        os.register_at_fork(after_in_child=forget)
    try:
        yield warning
    finally:
        if held:  # else nothing was locked, or this is a forked child
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
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
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
        os.close(descriptor)  # its owner took the file away meanwhile


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _refusal(file: Path) -> str:
    try:
        owner = json.loads(file.read_text())
        who = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"{file.parent} is in use by {who}: wait for it, stop it, or name another folder"
