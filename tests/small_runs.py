"""Small trainings to be stopped, killed and spoilt, for the tests, tests/faults among them."""

import hashlib
import io
import os
import pickle
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onecycle.data.batches import get_test_batch_transform, get_train_batch_transform
from onecycle.data.loaders import ResidentLoader
from onecycle.records import History
from onecycle.training import checkpoint
from onecycle.training.checkpoint import LAST, Checkpoint
from onecycle.training.compute import Compute
from onecycle.training.loop import fit

EPOCHS, STEPS = 2, 4
IDENTITY = {"recipe": {"epochs": EPOCHS, "seed": 0, "betas": (0.9, 0.999)}, "data": "digest"}
ENVIRONMENT = {"threads": 1, "torch": "2.15.0"}
HEADER = 8 + 32
POINTS = ("before-open", "mid-write", "before-replace", "between", "after-replace")
"""Inside a save."""


class Batches(ResidentLoader):
    """Augmented batches of 4 of 16 images; what was taken is noted in ``seen``.

    ``spoil`` takes each step's number from 0 and its images, and gives the images.
    """

    def __init__(self, spoil=None):
        images = np.random.default_rng(0).integers(0, 256, (4 * STEPS, 32, 32, 3), np.uint8)
        device, labels = torch.device("cpu"), np.arange(len(images)) % 2
        normal = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
        augment = get_train_batch_transform(images, *normal, device=device)
        super().__init__(augment, labels, 4, device=device, train=True)
        self.seen, self.spoil = [], spoil or (lambda step, images: images)
        self.to_evaluate = ResidentLoader(
            get_test_batch_transform(images, *normal, device=device), labels, 8,
            device=device, train=False,
        )  # fmt: skip

    def __iter__(self):
        epoch, start = self.batches.epoch, self.batches.start
        for index, (images, labels) in enumerate(super().__iter__(), start):
            self.seen.append((epoch, index))
            yield self.spoil((epoch - 1) * STEPS + index, images), labels


class Lines:
    """A part beside the loop's own: a log, which draws from the other generators as well."""

    def __init__(self):
        self.lines = []

    def on_step(self, epoch, step, accuracy):
        self.lines.append(f"{step.loss} {random.random()} {np.random.rand()}")

    def state_dict(self):
        return {"lines": list(self.lines)}

    def load_state_dict(self, state):
        self.lines = list(state["lines"])


def make(seed=0, width=2, epochs=None):
    """A run's parts; the dropout draws from torch's global generator."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, stride=16), nn.BatchNorm2d(width), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(4 * width, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=(epochs or EPOCHS) * STEPS
    )
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def loop_parts(**options):
    """What the training loop makes of them."""
    return {
        **make(**options), "scaler": torch.amp.GradScaler("cpu", enabled=False),
        "history": History(),
    }  # fmt: skip


def new(folder, **options):
    made = {"identity": IDENTITY, "environment": ENVIRONMENT, "epoch_every_s": 0.0, **options}
    return Checkpoint(folder, **made)


def stop_after(steps):
    """For a run from the beginning: it is asked after each step, and once more after each epoch."""
    calls = iter(range(1, 1000))

    def stop():
        call = next(calls)
        return call - call // (STEPS + 1) >= steps

    return stop


def train(
    parts, folder, *, stop=lambda: False, which="auto", every_s=0.0, log=None, evaluate=False,
    spoil=None, criterion=None,
):  # fmt: skip
    """A run in bfloat16, resumed where it was stopped; its history and loader."""
    log = Lines() if log is None else log
    saved = new(folder, every_s=every_s, extra={"log": log})
    saved.load(which)
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    loader = Batches(spoil)
    history = fit(
        parts["model"], loader, loader.to_evaluate if evaluate else None, parts["optimizer"],
        parts["scheduler"], criterion or nn.CrossEntropyLoss(), epochs=EPOCHS,
        compute=Compute("cpu", "bfloat16"), checkpoint=saved, callbacks=[log], stop=stop,
    )  # fmt: skip
    parts["history"], parts["log"] = history, log
    return history, loader


def plain(value):
    """What bit-identity is about: everything but the clock's seconds."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if "seconds" not in str(key)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def fingerprint(value):
    return hashlib.sha256(repr(plain(value)).encode()).hexdigest()


def digest(parts):
    state = {name: part.state_dict() for name, part in sorted(parts.items())}
    return fingerprint([state, random.getstate(), np.random.get_state(), torch.get_rng_state()])


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def sealed(value):
    """A file with the right digest whatever it holds."""
    if not isinstance(value, bytes):
        stream = io.BytesIO()
        torch.save(value, stream)
        value = stream.getvalue()
    return checkpoint.file._MAGIC + hashlib.sha256(value).digest() + value


def opened(content):
    stream = io.BytesIO(content[HEADER:])
    return torch.load(stream, weights_only=True)


def in_child(function, *, number=signal.SIGKILL, after_s=None, deadline_s=None):
    """The status of a forked child that runs the function: what it returned, None being 0.

    A child that is not done ``after_s`` seconds after the fork gets the signal; one that is not done
    ``deadline_s`` after it is killed.
    """
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            os._exit(function() or 0)
        except BaseException as error:  # noqa: BLE001
            print(repr(error), flush=True)
            os._exit(99)
    end = time.monotonic() + (deadline_s or 0)
    while deadline_s and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(pid, number)  # one that is done is there until it is waited for
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def damage(content, rng):
    kind = rng.randrange(4)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    if kind == 1:
        return content + rng.randbytes(rng.randrange(1, 100))
    changed = bytearray(content)
    for _ in range(1 if kind == 2 else rng.randrange(2, 50)):
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


class Evil:
    """Makes the folder ``marker`` when it is unpickled."""

    def __init__(self, marker, way=0):
        code = f"__import__('os').mkdir({str(marker)!r})"
        self.ways = [
            (os.mkdir, (str(marker),)), (os.system, (f"mkdir '{marker}'",)), (eval, (code,)),
            (exec, (code,)),
        ]  # fmt: skip
        self.way = way

    def __reduce__(self):
        return self.ways[self.way]


def pickled(value, protocol):
    return pickle.dumps(value, protocol)


def foreign():
    plain_pt = io.BytesIO()
    torch.save({"state_dict": make()["model"].state_dict()}, plain_pt)
    return {
        "empty": b"",
        "text": b"epoch 1\n" * 100,
        "page": b"<!DOCTYPE html><html><body>404</body></html>",
        "weights of another program": plain_pt.getvalue(),
        "pickle": pickle.dumps({"parts": {}}),
        "a list": sealed([1, 2]),
        "a tensor": sealed(torch.zeros(3)),
        "other keys": sealed({"model": {}}),
        "no zip": sealed(b"PK\x03\x04" + bytes(1000)),
        "nothing": sealed(b""),
        "a plain pickle": sealed(pickle.dumps({"parts": {}})),
    }


def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)


class HalfWritten:
    """A file that is killed in the middle of its second write."""

    def __init__(self, file):
        self.file, self.writes = file, 0

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()

    def write(self, content):
        self.writes += 1
        if self.writes == 2:
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            die()
        self.file.write(content)


def kill_at(point, count):
    """Make the process die at a point of its save number ``count`` (from 1)."""
    real_open, real_fsync, real_replace = open, os.fsync, os.replace
    saves = {"n": 0, "fsyncs": 0}

    def opening(file, mode):
        if mode == "rb":
            return real_open(file, mode)
        saves["n"] += 1
        if saves["n"] == count and point == "before-open":
            die()
        opened = real_open(file, mode)
        return HalfWritten(opened) if saves["n"] == count and point == "mid-write" else opened

    def replacing(source, target):
        to_last = Path(target).name == LAST
        if saves["n"] == count and point == ("between" if to_last else "before-replace"):
            die()
        real_replace(source, target)

    def syncing(descriptor):
        if saves["n"] == count and point == "after-replace":
            saves["fsyncs"] += 1
            if saves["fsyncs"] == 2:
                die()
        real_fsync(descriptor)

    checkpoint.file.open, os.replace, os.fsync = opening, replacing, syncing
