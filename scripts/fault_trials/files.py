"""Checkpoints that are damaged, foreign, hostile or unfit."""

from __future__ import annotations

import io
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import small_runs
import torch

from onecycle.errors import CheckpointError
from onecycle.training.checkpoint import LAST, PREVIOUS

from .common import SEED, Progress, scaled


def _hostile(marker: Path, draw: random.Random, state: dict[str, Any]) -> bytes:
    """A file with the right digest that runs something when it is unpickled."""
    evil, place = small_runs.Evil(marker, draw.randrange(4)), draw.randrange(4)
    if place == 0:
        state["notes"]["x"] = evil
    elif place == 1:
        state["parts"]["model"][draw.choice(list(state["parts"]["model"]))] = evil
    elif place == 2:
        state["parts"]["history"]["losses"].append(evil)
    content = evil if place == 3 else state
    if draw.random() < 0.5:
        return small_runs.sealed(small_runs.pickled(content, draw.randrange(6)))
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=draw.random() < 0.7)
    return small_runs.sealed(stream.getvalue())


def _unfit(draw: random.Random, state: dict[str, Any]) -> bytes:
    """A file with the right digest and form whose tensors do not fit or are not finite."""
    name = draw.choice(["model", "optimizer"])
    tree = state["parts"]["model"] if name == "model" else state["parts"]["optimizer"]["state"][0]
    key = draw.choice([k for k, v in tree.items() if v.is_floating_point() and v.ndim])
    value = tree[key]
    changes = [
        torch.full_like(value, draw.choice([math.nan, math.inf, -math.inf])),
        torch.cat([value, value]),
        value.double(),
        value[None],
    ]
    tree[key] = draw.choice(changes)
    if name == "model" and draw.random() < 0.3:
        tree[f"more {draw.random()}"] = tree.pop(key)
    return small_runs.sealed(state)


def mutations(share: float, folder: Path) -> dict[str, Any]:
    """Damaged, foreign, hostile and unfit files in place of the last checkpoint."""
    draw, failures, kinds = random.Random(SEED), [], Counter()
    run, marker = folder / "run", folder / "executed"
    small_runs.train(small_runs.make(), run, stop=small_runs.stop_after(3))
    whole = (run / LAST).read_bytes()
    strangers = list(small_runs.foreign().values())
    parts, total = small_runs.loop_parts(seed=9), scaled(10_000, share, 40)
    before, progress = small_runs.digest(parts), Progress(total)
    makers: dict[str, tuple[int, Callable[[], bytes]]] = {
        "damaged": (70, lambda: small_runs.damage(whole, draw)),
        "foreign": (
            10,
            lambda: draw.choice([*strangers, draw.randbytes(draw.randrange(len(whole)))]),
        ),
        "hostile": (10, lambda: _hostile(marker, draw, small_runs.opened(whole))),
        "unfit": (10, lambda: _unfit(draw, small_runs.opened(whole))),
    }
    fallbacks = 0
    for done in range(total):
        (kind,) = draw.choices(list(makers), [weight for weight, _ in makers.values()])
        content = makers[kind][1]()
        if content == whole:
            continue
        kinds[kind] += 1
        (run / LAST).write_bytes(content)
        loaded = small_runs.new(run, extra={"log": small_runs.Lines()})
        try:
            if loaded.load(run / LAST):
                loaded.restore(parts)
                failures.append(f"mutation {done} ({kind}) was loaded")
        except CheckpointError:
            pass
        except BaseException as error:  # noqa: BLE001
            failures.append(f"mutation {done} ({kind}): {error!r}")
        if marker.exists():
            failures.append(f"mutation {done} ({kind}) was executed")
            shutil.rmtree(marker, ignore_errors=True)
        if kind != "unfit":  # that is found when the network is there, not by reading the file
            back = small_runs.new(run)
            if back.load() and back.source == run / PREVIOUS and len(back.warnings) == 1:
                fallbacks += 1
            else:
                failures.append(f"mutation {done} ({kind}): no fall-back")
        if done % 100 == 0 and small_runs.digest(parts) != before:
            failures.append(f"mutation {done} ({kind}): the network was touched")
        progress.at(done + 1)
    if small_runs.digest(parts) != before:
        failures.append("the network was touched")
    return {
        "mutations": kinds.total(), "kinds": dict(kinds), "fallbacks": fallbacks,
        "bytes_of_the_file": len(whole), "failures": failures,
    }  # fmt: skip
