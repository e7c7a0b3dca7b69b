"""Files of a run that somebody edited, each as all commands read it: an error of one line, or a result."""

import copy
import json
import math
import random
import shutil
from collections import Counter

import pytest
import small_runs
import torch
from safetensors.torch import load, save
from test_run import HERE, RECIPE, StopAfter, Tiny

from onecycle import Run, load_digits
from onecycle.errors import RunError
from onecycle.recipe import read_recipe
from onecycle.results.compare.runs import read_runs
from onecycle.results.reading import read_history, read_results
from onecycle.results.weights import load_weights
from onecycle.training.checkpoint import LAST

NASTY = (
    None, True, 0, -1, 1, 3, 0.5, 1e308, 10**400, math.nan, math.inf, "", "x", "\ud800", "\x1b[2J",
    "\u202e", "long" * 1000, [], {}, [1], [[]], {"a": 1}, [None], {"epoch": -1},
)  # fmt: skip


def places(value, path=()):
    """The path of each value in plain data."""
    yield path
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(each, (*path, key))


def edited(value, draw):
    """Plain data with one to three values replaced, removed or, of a list, doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw.randrange(1, 4)):
        path = draw.choice(list(places(value)))
        if not path:
            continue
        box = value
        for key in path[:-1]:
            box = box[key]
        way = draw.randrange(4)
        if way == 0:
            del box[path[-1]]
        elif way == 1 and isinstance(box, list):
            box.append(box[path[-1]])
        else:
            box[path[-1]] = copy.deepcopy(draw.choice(NASTY))
    return value


def json_edited(content, draw):
    way = draw.randrange(12)
    if way == 0:
        return small_runs.damage(content, draw)
    if way == 1:
        return draw.choice([b"", b"null", b"[" * 100_000, b'{"a":1,"a":2}', b"9" * 10_000, b"\xff"])
    text = json.dumps(edited(json.loads(content), draw))
    if way == 2:  # a name twice
        text = text.replace('"', '"recipe": {}, "', 1)
    return text.encode()


def csv_edited(content, draw):
    if draw.random() < 0.3:
        return small_runs.damage(content, draw)
    lines = content.decode().split("\n")
    cells = lines[line := draw.randrange(len(lines))].split(",")
    cells[draw.randrange(len(cells))] = str(draw.choice(NASTY))
    lines[line] = ",".join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def weights_edited(content, draw):
    """Metadata, and with them the digest, are another's."""
    if draw.random() < 0.3:
        return small_runs.damage(content, draw)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    del header["digest"]
    name = draw.choice(["data", "recipe"])
    header[name] = json.dumps(edited(json.loads(header[name]), draw))
    return save(load(content), metadata=header)


def checkpoint_edited(content, draw):
    """A value of the state is another, and the digest is made anew."""
    if draw.random() < 0.2:
        return small_runs.damage(content, draw)
    state = small_runs.opened(content)
    box = state if draw.random() < 0.3 else state["parts"]
    while True:
        keys = list(box.keys()) if isinstance(box, dict) else list(range(len(box)))
        if not keys:
            break
        key = draw.choice(keys)
        if isinstance(box[key], dict | list) and box[key] and draw.random() < 0.85:
            box = box[key]
            continue
        if isinstance(box[key], torch.Tensor):
            box[key] = draw.choice(
                [None, torch.zeros(3), box[key].double() + 1, box[key].reshape(-1)[:1]]
            )
        elif draw.random() < 0.2:
            del box[key]
        else:
            box[key] = copy.deepcopy(draw.choice(NASTY))
        break
    return small_runs.sealed(state)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Images, the folder of a finished run, and that of a stopped one."""
    train, test = load_digits()
    data, folder = (train.sample(48), test.sample(20)), tmp_path_factory.mktemp("given")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onecycle.run.FIGURES", {})
        Run(folder / "finished", data, Tiny, RECIPE, **HERE).save()
        stopped = Run(folder / "stopped", data, Tiny, RECIPE, **HERE, callbacks=[StopAfter(2)])
        stopped.fit()
    return data, folder


def read_run(folder, data):
    results = read_results(folder)
    if "history" in results:
        read_history(folder, results)


def read_pair(folder, data):
    read_runs([folder, folder.parent / "other"])


def resume(folder, data):
    run = Run(folder, data, Tiny, RECIPE, **HERE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onecycle.training.loop._Training.run", lambda training: None)
        run.fit()


CASES = {
    "results.json": (json_edited, read_pair, "finished"),
    "errors.csv": (csv_edited, read_pair, "finished"),
    "steps.csv": (csv_edited, read_run, "finished"),
    "log.txt": (csv_edited, read_run, "finished"),
    "model.safetensors": (
        weights_edited, lambda folder, data: load_weights(folder / "model.safetensors"), "finished",
    ),
    "recipe.json": (
        json_edited, lambda folder, data: read_recipe(folder / "recipe.json"), "finished",
    ),
    LAST: (checkpoint_edited, resume, "stopped"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of strange pickles
@pytest.mark.parametrize("name", CASES)
def test_edits(trials, given, tmp_path, name, capsys):
    edit, read, kind = CASES[name]
    data, folder = given
    for copied in ("run", "other"):
        shutil.copytree(folder / kind, tmp_path / copied)
    recipe = json.dumps(json.loads((folder / "finished/results.json").read_text())["recipe"])
    (tmp_path / "run" / "recipe.json").write_text(recipe)
    (tmp_path / "run" / "previous.ckpt").unlink(missing_ok=True)
    file, draw, found = tmp_path / "run" / name, random.Random(0), Counter()
    whole = file.read_bytes()
    for number in range(trials.scaled(2000, least=100)):
        file.write_bytes(edit(whole, draw))
        try:
            read(tmp_path / "run", data)
            found["taken"] += 1
        except RunError as error:
            found["refused"] += 1
            if len(str(error)) > 3000 or "\n" in str(error):
                trials.failures.append(f"{name} {number}: the message is {error}")
        except BaseException as error:  # noqa: BLE001
            trials.failures.append(f"{name} {number}: {error!r:.300}")
    shown = capsys.readouterr().out
    if any(ord(letter) < 32 and letter != "\n" for letter in shown):
        trials.failures.append(f"{name}: control characters are shown")
    trials.record(edits=found.total(), **found)
    assert found["refused"] > found.total() / 10  # any text is a log
