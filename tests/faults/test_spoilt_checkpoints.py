"""Checkpoints that are damaged, foreign, hostile or unfit."""

import io
import math
import random
import shutil
from collections import Counter

import pytest
import small_runs
import torch

from onecycle.errors import CheckpointError
from onecycle.training.checkpoint import LAST, PREVIOUS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of strange pickles
WEIGHTS = {"damaged": 70, "foreign": 10, "hostile": 10, "unfit": 10}


def hostile(marker, draw, state):
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


def unfit(draw, state):
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


def spoilt(kind, whole, marker, draw, strangers):
    """A file to be put in the place of the whole one."""
    if kind == "damaged":
        return small_runs.damage(whole, draw)
    if kind == "foreign":
        return draw.choice([*strangers, draw.randbytes(draw.randrange(len(whole)))])
    state = small_runs.opened(whole)
    return hostile(marker, draw, state) if kind == "hostile" else unfit(draw, state)


def what_loading_does(run, parts, marker):
    """What is wrong about loading the last checkpoint of a run, or nothing."""
    loaded = small_runs.new(run, extra={"log": small_runs.Lines()})
    try:
        if loaded.load(run / LAST):
            loaded.restore(parts)
            yield "was loaded"
    except CheckpointError:
        pass
    except BaseException as error:  # noqa: BLE001
        yield f"ended in {error!r}"
    if marker.exists():
        yield "was executed"
        shutil.rmtree(marker, ignore_errors=True)


def falls_back(run):
    back = small_runs.new(run)
    return back.load() and back.source == run / PREVIOUS and len(back.warnings) == 1


def put_in_place(trials, folder):
    """Count what comes of spoilt files in place of the last checkpoint."""
    draw, kinds, fallbacks = random.Random(0), Counter(), 0
    run, marker = folder / "run", folder / "executed"
    small_runs.train(small_runs.make(), run, stop=small_runs.stop_after(3))
    whole, strangers = (run / LAST).read_bytes(), list(small_runs.foreign().values())
    parts, total = small_runs.loop_parts(seed=9), trials.scaled(10_000, least=40)
    before = small_runs.digest(parts)
    for number in range(total):
        (kind,) = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        content = spoilt(kind, whole, marker, draw, strangers)
        if content == whole:
            continue
        kinds[kind] += 1
        (run / LAST).write_bytes(content)
        wrong = list(what_loading_does(run, parts, marker))
        if kind != "unfit":  # that is found when the network is there, not by reading the file
            if falls_back(run):
                fallbacks += 1
            else:
                wrong.append("the one before was not taken")
        if number % 100 == 0 and small_runs.digest(parts) != before:
            wrong.append("the network was touched")
        trials.failures += [f"mutation {number} ({kind}): {each}" for each in wrong]
    if small_runs.digest(parts) != before:
        trials.failures.append("the network was touched")
    trials.record(
        mutations=kinds.total(), kinds=dict(kinds), fallbacks=fallbacks,
        bytes_of_the_file=len(whole),
    )  # fmt: skip


def test_mutations(trials, tmp_path):
    """Damaged, foreign, hostile and unfit files in place of the last checkpoint."""
    put_in_place(trials, tmp_path)


@pytest.mark.parametrize("trials", ["smoke"], indirect=True)
def test_without_its_digest_a_checkpoint_fails_the_mutations(trials, tmp_path, monkeypatch):
    class Same:
        digest_size = 32

        def __init__(self, content=b""):
            pass

        def update(self, content):
            pass

        def digest(self):
            return bytes(32)

    monkeypatch.setattr("onecycle.training.checkpoint.file.hashlib.sha256", Same)
    monkeypatch.setattr(small_runs, "digest", lambda parts: "")
    put_in_place(trials, tmp_path)
    assert any("was loaded" in failure for failure in trials.failures)
    trials.failures.clear()
