"""Files written whole or not at all; beside ``errors`` and ``records`` a room that others import."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """All of the content or nothing: what was there before stays until the new file is whole.

    Args:
        file: in a folder that is there.
        content: the new file's.

    Raises:
        OSError: it cannot be written; what was there stays, and nothing else is left.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as stream:
            stream.write(content)
            stream.flush()
            sync(stream.fileno())
        os.replace(part, file)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def sync(descriptor: int) -> None:
    """Wait until a file or folder is on the drive, where the drive can be asked to.

    Raises:
        OSError: it is not, and will not be.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what mounted drives say
            raise
