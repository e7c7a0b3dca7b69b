"""Faults in several libraries: what is counted and said of them."""

import json

import pytest

from benchmarks import reliability, render
from onecycle.errors import UsageError

PLAIN = {"exit": 0, "traceback": False, "steps": 8, "weights": "a", "finite": True, "trained": 8}


def again(**changes):
    return PLAIN | {"first_exit": 0, "first_traceback": False, "hands": 0} | changes


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (again(), "same weights"),
        (again(weights="b"), "other weights"),
        (again(weights="b", steps=9), "9 of 8 steps"),
        (again(finite=False), "NaN weights after 8 steps"),
        (
            again(first_exit=1, first_traceback=True, hands=1),
            "exit 1, traceback; by hand same weights",
        ),
        (again(first_exit=4, exit=4), "exit 4, no traceback, and again"),
    ],
)
def test_what_a_second_start_leads_to(found, words):
    assert reliability.after(found, PLAIN) == words


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (again(first_exit=1, first_traceback=True), "exit 1, traceback"),
        (again(trained=12), "falls back to an earlier one"),
        (again(), "no effect"),
        (again(weights="b"), "trains on with the damaged values"),
    ],
)
def test_what_a_damaged_checkpoint_leads_to(found, words):
    assert reliability.after_damage(found, again()) == words


def test_kills_are_counted_by_what_came_of_them():
    ends = [again(), again(hands=1), again(weights="b", steps=9), again(exit=1, hands=4)]
    assert reliability.summarise_kills([{"again": end} for end in ends], PLAIN) == {
        "kills": 4, "ended": 3, "by_hand": 2, "same_weights": 2, "other_steps": 1,
    }  # fmt: skip


def test_an_unknown_library_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--only has theirs"):
        reliability.main(["--only", "theirs", "--out", str(tmp_path / "r.json")])


def test_the_published_table_has_a_row_and_a_column_for_each_library():
    result = json.loads((render.CPU / "reliability.json").read_text("utf-8"))
    assert result["summary"] == reliability.summarise(result["libraries"], result["runs"])
    kills, faults = render.render_one("reliability").split("\n\n")[1:]
    for row in result["summary"].values():
        assert f"| {row['title']} (" in kills and f"| {row['title']} |" in faults
