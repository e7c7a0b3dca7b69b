"""Where a run comes from: what it is called, when it was begun, and which code trains it."""

from __future__ import annotations

import functools
import os
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from onecycle import __version__

ROOT = Path(__file__).resolve().parents[2]
"""The clone, if the package is in one."""
GIT_TIMEOUT_S = 10


def one_line(text: str) -> str:
    """A text without line breaks, in letters that every file can hold."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def begin() -> dict[str, Any]:
    """What is known when a training begins: the date (ISO 8601 with zone) and the code."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": code_version(),
    }


@functools.cache
def code_version() -> str:
    """The commit of the clone, with ``+changes`` if a file differs from it; else the version."""
    if not (ROOT / ".git").exists():  # else it would be the commit of a folder around it
        return __version__
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, ValueError, subprocess.SubprocessError):
        return __version__
    return f"{commit}{'+changes' if changes else ''}"


def _git(*words: str) -> str:
    # Without variables that name another repository, and without refreshing its index.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(ROOT), *words],
        env=own | {"GIT_OPTIONAL_LOCKS": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=GIT_TIMEOUT_S,
        check=True,
        text=True,
    )
    return done.stdout.strip()
