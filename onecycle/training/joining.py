"""How a process joins the group that a launcher such as ``torchrun`` started it in."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import onecycle
from onecycle.errors import RunError, UsageError, WorkerError
from onecycle.training.group import Group, odd_one
from onecycle.training.waiting import Watch

TIMEOUT_S = 3600.0
"""How long a process waits for the others: one of them may download images or run a range test."""
LARGEST_PORT = 65535
_POLL_S = 0.1
_STEP = timedelta(seconds=20)
"""Of what is answered at once, if it is answered."""


@contextlib.contextmanager
def join_group(
    device: torch.device,
    *,
    timeout_s: float = TIMEOUT_S,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Group]:
    """The group that ``torchrun`` started this process in, or a group of one.

    The processes communicate by NCCL on GPUs, and by gloo elsewhere.

    Args:
        device: as chosen for a single process; with several GPUs each process gets its own.
        timeout_s: how long a process waits for the others, in seconds.
        say: told in one line that this process waits for long.

    Raises:
        UsageError: this machine has more processes than GPUs, or several on mps; a variable of the
            launcher is missing or makes no sense; or the processes are of different versions.
        WorkerError: another process did not come, is gone, or gave no sign for ``timeout_s``.
    """
    world_size = _number("WORLD_SIZE", 1)
    if world_size == 1 or not os.environ.get("RANK"):
        yield Group(device)
        return
    rank, local_rank = _number("RANK", 0, world_size - 1), _number("LOCAL_RANK", 0)
    device = _own_device(device, local_rank)
    address, port = _address()
    # Processes of several machines may have the same local rank.
    own = {"host": socket.gethostname(), "local_rank": local_rank, "device": device.type}
    watch = Watch(say, timeout_s)
    with watch.running(), named_losses(timeout_s):
        with watch.waiting("their start"):
            store = _meet(address, port, rank, world_size, own, timeout_s, watch)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("group", store), rank=rank, world_size=world_size,
                timeout=timedelta(seconds=timeout_s),
            )  # fmt: skip
        try:
            yield Group(device, rank, world_size, local_rank, watch)
        finally:
            dist.destroy_process_group()


def _own_device(device: torch.device, local_rank: int) -> torch.device:
    if device.type == "mps":
        raise UsageError("mps trains in one process only; start it without torchrun, or on cpu")
    if device.type != "cuda":
        return device
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"process {local_rank} of this machine has no GPU, there are "
            f"{torch.cuda.device_count()}; lower --nproc-per-node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def named_losses(timeout_s: float) -> Iterator[None]:
    """Errors of torch's communication as one that says what they mean.

    Raises:
        WorkerError: another process is gone, or gave no sign for ``timeout_s``.
    """
    try:
        yield
    except RunError:
        raise
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(
            name in text.lower() for name in ("gloo", "nccl", "tcpstore")
        ):
            raise
        # Without the place in the code, and the first sentence alone.
        reason, _, _ = re.sub(r"^\[.*?\] *", "", text.splitlines()[0]).partition(". ")
        if "timed out" in text.lower():
            reason = f"no sign of it for {timeout_s / 60:.4g} min, --timeout; {reason}"
        raise WorkerError(f"another process of the group is gone ({reason})") from error


def _meet(
    address: str,
    port: int,
    rank: int,
    world_size: int,
    own: dict[str, object],
    timeout_s: float,
    watch: Watch,
) -> dist.Store:
    """Wait until all processes are there, each once and of the same versions."""
    end = time.monotonic() + timeout_s
    # Under torchrun its agent holds the store, else process 0 does.
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    _resolve(address)
    if not is_master:
        _reach(address, port, end)
    try:
        store = dist.TCPStore(
            address, port, world_size, is_master, timeout=_STEP, wait_for_workers=False,
            multi_tenant=True,
        )  # fmt: skip
    except dist.DistNetworkError as error:
        if not is_master:
            raise
        raise UsageError(
            f"process 0 cannot listen on MASTER_PORT {port}: {_reason(error)}; set another"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"onecycle/{attempt}", store)
    if store.add(f"rank {rank}", 1) > 1:
        raise UsageError(
            f"two processes have RANK {rank}; give each its own, 0 to {world_size - 1}"
        )
    store.set(f"about {rank}", json.dumps(own | _versions()))
    missing = list(range(world_size))
    while missing := [other for other in missing if not store.check([f"about {other}"])]:
        if time.monotonic() > end:
            raise WorkerError(
                f"process {missing[0]} of {world_size} did not come within {timeout_s / 60:.4g} min "
                "(--timeout); start all of them"
            )
        watch.note(f"{world_size - len(missing)} of {world_size} are here")
        time.sleep(_POLL_S)
    about = [json.loads(store.get(f"about {other}")) for other in range(world_size)]
    _leave_together(store, world_size)
    places = [(each["host"], each["local_rank"]) for each in about]
    for other, place in enumerate(places):
        if (first := places.index(place)) != other:
            raise UsageError(
                f"processes {first} and {other} on {place[0]} have the same LOCAL_RANK {place[1]}; "
                "number those of a machine from 0"
            )
    hosts = [each["host"] for each in about]
    compared = [*_versions(), "device"]
    if found := odd_one(hosts, [{name: each[name] for name in compared} for each in about]):
        raise UsageError(f"{found}; it must be the same for all processes")
    return store


def _leave_together(store: dist.Store, world_size: int) -> None:
    """Wait until all have read what the process that holds the store would take with it."""
    store.add("read", 1)
    end = time.monotonic() + _STEP.total_seconds()
    while store.add("read", 0) < world_size and time.monotonic() < end:
        time.sleep(_POLL_S / 10)


def _resolve(address: str) -> None:
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"MASTER_ADDR is {address!r}, which is not known here "
            f"({getattr(error, 'strerror', error)}); set the address of the first machine"
        ) from error


def _reach(address: str, port: int, end: float) -> None:
    """Wait until somebody listens there, in Python, so that a signal ends it."""
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise WorkerError(
                    f"process 0 is not at {address}:{port} ({error.strerror or error}); "
                    "start it, or set MASTER_ADDR and MASTER_PORT"
                ) from error
            time.sleep(_POLL_S)


@functools.cache
def _versions() -> dict[str, str]:
    code = hashlib.sha256()
    for file in sorted(Path(onecycle.__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    return {
        "onecycle": onecycle.__version__,
        "torch": torch.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "code": code.hexdigest()[:12],
    }


def _reason(error: Exception) -> str:
    """What the system said, without torch's list of places."""
    text = str(error)
    return "it is in use" if "EADDRINUSE" in text else text.splitlines()[0]


def _address() -> tuple[str, int]:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UsageError(f"{' and '.join(missing)} is not set; start the processes with torchrun")
    return os.environ["MASTER_ADDR"], _number("MASTER_PORT", 0, LARGEST_PORT)


def _number(name: str, default: int, most: int | None = None) -> int:
    """A number that the launcher set.

    Raises:
        UsageError: it is none, or out of its range.
    """
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"{name} is {text!r}; it must be a whole number, as torchrun sets it")
    least = 1 if name in ("WORLD_SIZE", "MASTER_PORT") else 0
    if int(text) < least or (most is not None and int(text) > most):
        allowed = f"{least} or more" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} is {text}; it must be {allowed}")
    return int(text)
