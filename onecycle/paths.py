"""Paths that people name: what they lead to, whether they can be written, what was left there."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import stat
from pathlib import Path

from onecycle.errors import StorageError


def kind_at(path: str | os.PathLike) -> str | None:
    """What a path that a person names leads to.

    Returns:
        "file", "folder" or "other" (a pipe, a device); None if nothing is there.

    Raises:
        OSError: it cannot be told: the name is too long, a folder may not be entered, or links
            lead in a circle.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have such a name", str(path)) from error
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def check_folder(folder: str | os.PathLike) -> None:
    """Refuse a folder that could not be made or written; nothing is made.

    Raises:
        StorageError: it, or the nearest folder above it that is there, is none or is not writable.
    """
    try:
        for part in (Path(folder), *Path(folder).absolute().parents):
            if (kind := kind_at(part)) is None and not os.path.islink(part):
                continue
            if kind != "folder":
                raise StorageError(f"cannot write to {folder}: {part} is no folder")
            if not os.access(part, os.W_OK | os.X_OK):
                raise StorageError(f"cannot write to {folder}: {part} is not writable")
            return
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from error


def storage_error(path: str | os.PathLike, error: OSError) -> StorageError:
    """What to say of a file or folder that cannot be written, with the way out of a full disk."""
    where = f"to {path}" if os.path.isdir(path) else path
    said = f"cannot write {where}: {error.strerror or error}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(said)
    return StorageError(f"{said} ({free_space(path)}); make room, and give the same command again")


def free_space(path: str | os.PathLike) -> str:
    """How much the disk of a file or folder can take, in words."""
    for part in (Path(path), *Path(path).absolute().parents):
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(part).free / 1e6:,.1f} MB free"
    return "free space unknown"


def part_of(file: Path) -> Path:
    """Where a file is written before it gets its name, by this process of this machine."""
    # Short enough where the name itself is as long as names may be.
    return file.with_name(f".{file.name[:40]}.{_machine()}.{os.getpid()}.part")


def drop_parts(folder: Path, name: str = "") -> None:
    """Remove what killed processes of this machine left of files in a folder.

    Args:
        folder: of the files; it may be missing.
        name: of the file, or with "" of any.
    """
    own = re.compile(rf"\.{re.escape(name[:40])}.*\.{re.escape(_machine())}\.(\d+)\.part", re.S)
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            found = own.fullmatch(entry.name)
            if found and not _is_alive(int(found[1])):
                remove(entry.path)


def remove(path: str | os.PathLike) -> None:
    """Remove a file or a folder; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def _machine() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname(), flags=re.ASCII)[:40]


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere the call below would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
