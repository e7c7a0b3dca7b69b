import itertools
import json

import numpy as np
import pytest
from small_benchmarks import CPU, stored

from benchmarks import range_test, render
from benchmarks.common import RESULTS
from onecycle.errors import RangeTestError, UsageError
from onecycle.optim.lr_rule import suggest_lr
from onecycle.recipe import Recipe


def test_it_goes_on_with_the_seeds_that_are_missing(tmp_path, capsys):
    file = tmp_path / "range_test.json"
    words = ["--only", "digits", "--out", str(file), *CPU]
    range_test.main([*words, "--seeds", "1"])
    first = stored(file)
    range_test.main([*words, "--seeds", "2"])
    second = stored(file)
    assert second["runs"][0] == first["runs"][0]
    assert [(run["set"], run["seed"]) for run in second["runs"]] == [("digits", 0), ("digits", 1)]
    row = second["summary"]["digits"]
    found = [run["lr_max"] for run in second["runs"] if run["lr_max"]]
    assert (row["seeds"], row["refused"]) == (2, 2 - len(found))
    assert "| 1,437: digits | 1 x 40 | 64 | 2 |" in capsys.readouterr().out
    assert "1,437: digits" in render.render_one("range_test", file.parent)


def test_the_spread_is_of_the_seeds_that_have_an_answer():
    rates = [(1e-3, 1e-5), (4e-3, 1e-5), (None, None)]
    runs = [{"set": "digits", "lr_max": high, "lr_min": low} for high, low in rates]
    row = range_test.summarise(runs)["digits"]
    assert (row["seeds"], row["refused"]) == (3, 1)
    assert row["lr_max"] == pytest.approx({"mean": 2e-3, "least": 1e-3, "most": 4e-3, "spread": 4})


@pytest.mark.parametrize("words", [["--only", "mnist"], ["--only", "cifar10"]])
def test_images_that_are_not_there_are_refused(words, tmp_path):
    with pytest.raises(UsageError, match="--(only has mnist|data-dir is missing)"):
        range_test.main([*words, "--out", str(tmp_path / "r.json")])


def test_sweeps_of_cifar10_at_full_size_agree():
    result = json.loads((RESULTS / "sweeps.json").read_text("utf-8"))
    sweeps = [run["losses"] for run in result["runs"]]
    lrs = np.geomspace(1e-6, 0.1, 110)
    for every in (1, 2, 5):  # fewer steps have more noise, and the same answer
        found = [suggest_lr(lrs[::every], losses[::every]) for losses in sweeps]
        rates = np.log([[each.lr_max, each.lr_min] for each in found])
        assert np.exp(rates.mean(0)) == pytest.approx([0.0026, 7e-6], rel=0.15)
        assert np.exp(np.ptp(rates, axis=0)).max() < 2
    three = [suggest_lr(lrs, some).lr_max for some in itertools.combinations(sweeps, 3)]
    assert max(three) / min(three) < 1.35


def test_the_published_rates_follow_from_the_published_losses():
    result = json.loads((RESULTS / "range_test.json").read_text("utf-8"))
    assert result["summary"] == range_test.summarise(result["runs"])
    for run in result["runs"]:
        steps = result["settings"]["sets"][run["set"]]["steps"]
        losses = np.full(steps, np.inf)  # beyond the record it has diverged
        losses[: len(run["losses"])] = run["losses"]
        lrs = np.geomspace(Recipe().finder_start_lr, 0.1, steps)
        if run["lr_max"] is None:
            with pytest.raises(RangeTestError):
                suggest_lr(lrs, losses)
            continue
        found = suggest_lr(lrs, losses)
        assert found.lr_max == pytest.approx(run["lr_max"], rel=1e-2)
        assert found.lr_min == pytest.approx(run["lr_min"], rel=0.1)
