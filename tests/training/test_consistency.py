"""Checkpoints whose parts were changed or exchanged, and whose digest was made anew."""

import pytest
import small_runs
import torch

from onecycle.errors import CheckpointError
from onecycle.training.checkpoint import LAST

BEFORE = 6  # steps of 8, in the second of two epochs


def history(**changes):
    return lambda parts, other: parts["history"].update(changes)


def exchange(name):
    """A part of the same training, from one epoch before."""
    return lambda parts, other: parts.update({name: other[name]})


def scheduler(**changes):
    return lambda parts, other: parts["scheduler"].update(changes)


def optimizer_group(**changes):
    return lambda parts, other: parts["optimizer"]["param_groups"][0].update(changes)


def moment(step):
    def change(parts, other):
        for values in parts["optimizer"]["state"].values():
            values["step"] = torch.tensor(float(step))

    return change


CHANGES = {
    "history of another moment": exchange("history"),
    "optimizer of another moment": exchange("optimizer"),
    "scheduler of another moment": exchange("scheduler"),
    "no steps": history(lrs=[], losses=[]),
    "a loss too few": lambda parts, other: parts["history"]["losses"].pop(),
    "epochs that are none": history(epochs=[{"epoch": -1}]),
    "epoch of another number": lambda parts, other: parts["history"]["epochs"][0].update(epoch=2),
    "another rate": lambda parts, other: parts["history"]["epochs"][0].update(lr=0.5),
    "epochs beyond the end": lambda parts, other: parts["history"].update(
        epochs=9 * parts["history"]["epochs"]
    ),
    "no images": history(running={"images": 0, "correct": 0, "loss": 0.0, "seconds": 0.0}),
    "more right than all": history(
        running={"images": 8, "correct": 9, "loss": 0.0, "seconds": 0.0}
    ),
    "skipped steps": history(skipped_steps=1000),
    "steps beyond the end": moment(10**6),
    "steps below 0": moment(-1),
    "optimizer without moments": lambda parts, other: parts["optimizer"]["state"].clear(),
    "moments of no parameter": lambda parts, other: parts["optimizer"]["state"].update({99: {}}),
    "rate of no moment": optimizer_group(lr=0.5),
    "rate that is none": optimizer_group(eps="x"),
    "field too many": optimizer_group(more=1),
    "schedule of another length": scheduler(total_steps=1000),
    "position beyond the end": scheduler(last_epoch=1000),
    "counter of another position": scheduler(_step_count=1),
    "schedule with a method": scheduler(step=3),
    "variance below 0": lambda parts, other: parts["model"]["1.running_var"].fill_(-1),
    "random numbers of another size": lambda parts, other: parts["random"].update(
        torch=torch.zeros(3, dtype=torch.uint8)
    ),
    "random numbers at no place": lambda parts, other: parts["random"].update(
        numpy=("MT19937", torch.zeros(624, dtype=torch.int64), 10**6, 0, 0.0)
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The content of a checkpoint, and the parts of another some steps before."""
    contents = []
    for steps in (BEFORE, 3):
        folder = tmp_path_factory.mktemp("run")
        small_runs.train(small_runs.make(), folder, stop=small_runs.stop_after(steps))
        contents.append((folder / LAST).read_bytes())
    return contents


def resumed(folder, state, parts=None):
    (folder / LAST).write_bytes(small_runs.sealed(state))
    return small_runs.train(parts or small_runs.make(seed=9), folder)[0]


def fingerprint(parts):
    return small_runs.fingerprint({name: part.state_dict() for name, part in parts.items()})


def test_a_state_that_nobody_changed_is_taken(tmp_path, saved):
    assert len(resumed(tmp_path, small_runs.opened(saved[0])).steps) == 8


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_that_contradicts_itself_is_refused_and_changes_nothing(tmp_path, saved, name):
    state, other = map(small_runs.opened, saved)
    CHANGES[name](state["parts"], other["parts"])
    parts = small_runs.make(seed=9)
    before = fingerprint(parts)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        resumed(tmp_path, state, parts)
    assert fingerprint(parts) == before and "\n" not in str(caught.value)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value", [nested(100), nested(40), torch.zeros(1).expand(10**12), "\ud800", float("nan")]
)
def test_content_that_unfolds_or_is_no_plain_data_is_refused(tmp_path, saved, value):
    state = small_runs.opened(saved[0])
    state["notes"]["x"] = value
    with pytest.raises(CheckpointError, match="something else"):
        resumed(tmp_path, state)
