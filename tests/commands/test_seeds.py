import json
import os
import shutil
import signal
import statistics

import pytest
from tiny_network import WORDS, Tiny, make_quick

from onecycle import commands
from onecycle.commands import images
from onecycle.commands.seeds import parse_seeds
from onecycle.errors import UsageError
from onecycle.results.reading import read_results

SEEDS = ["--seeds", "0-1,5"]


@pytest.fixture
def tiny(monkeypatch):
    make_quick(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three seeds that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "seeds"
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        assert commands.main([*WORDS, *SEEDS, "--name", "Mine", "--out", str(out)]) == 0
    return out


def numbers(folder):
    return [(folder / name).read_bytes() for name in ("steps.csv", "model.safetensors")]


def test_each_seed_gives_what_it_gives_alone(whole, tiny, tmp_path):
    assert sorted(path.name for path in whole.iterdir()) == [
        "compare.html", "seed-0", "seed-1", "seed-5", "summary.json",
    ]  # fmt: skip
    assert commands.main([*WORDS, "--seed", "5", "--out", str(tmp_path / "alone")]) == 0
    assert numbers(whole / "seed-5") == numbers(tmp_path / "alone") != numbers(whole / "seed-0")
    assert read_results(whole / "seed-5")["run"]["name"] == "Mine, seed 5"


def test_the_summary_has_mean_deviation_and_worst(whole):
    summary = json.loads((whole / "summary.json").read_text("utf-8"))
    each = [read_results(whole / f"seed-{n}")["evaluation"]["accuracy"] for n in (0, 1, 5)]
    assert summary["runs"] == {"0": "seed-0", "1": "seed-1", "5": "seed-5"}
    assert summary["accuracy"] == {
        "each": each, "mean": pytest.approx(sum(each) / 3), "std": statistics.stdev(each),
        "worst": min(each),
    }  # fmt: skip
    assert summary["worst_seed"] == (0, 1, 5)[each.index(min(each))]


def test_the_comparison_has_all_seeds(whole):
    page = (whole / "compare.html").read_text("utf-8")
    for seed in (0, 1, 5):
        assert f'<a href="seed-{seed}/report.html">Mine, seed {seed}</a>' in page


def test_finished_seeds_are_read_again_and_images_loaded_once(
    whole, tiny, monkeypatch, capsys, tmp_path
):
    calls = []
    load = images.load_images
    monkeypatch.setattr(images, "load_images", lambda *args: calls.append(1) or load(*args))
    before = (whole / "seed-0" / "results.json").stat().st_mtime_ns
    assert commands.main([*WORDS, *SEEDS, "--name", "Mine", "--out", str(whole)]) == 0
    out = capsys.readouterr().out
    assert len(calls) == 1 and out.count("already complete") == 3
    accuracy = json.loads((whole / "summary.json").read_text("utf-8"))["accuracy"]
    assert f"Accuracy of 3 seeds: mean {100 * accuracy['mean']:.2f} %" in out
    assert (whole / "seed-0" / "results.json").stat().st_mtime_ns == before


def test_a_stopped_series_resumes_where_it_was(whole, tiny, monkeypatch, tmp_path, capsys):
    out = tmp_path / "seeds"
    trained = []

    def stop():
        trained.append(1)
        if len(trained) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    monkeypatch.setattr(Tiny, "at", 7)  # in the second run
    monkeypatch.setattr(Tiny, "fault", staticmethod(stop))
    assert commands.main([*WORDS, *SEEDS, "--out", str(out)]) == 130
    assert capsys.readouterr().err.endswith(f"resume with the same command and --out {out}\n")
    assert (out / "seed-0/results.json").exists() and not (out / "summary.json").exists()
    assert not (out / "seed-5").exists()
    monkeypatch.setattr(Tiny, "at", None)
    assert commands.main([*WORDS, *SEEDS, "--out", str(out)]) == 0
    for seed in (0, 1, 5):
        assert numbers(out / f"seed-{seed}") == numbers(whole / f"seed-{seed}")


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-4", [0, 1, 2, 3, 4]), ("0,3,7", [0, 3, 7]), (" 9, 2-3", [9, 2, 3])],
)
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "must be numbers and ranges") for text in
          ("", "x", "4-0", "1-", "-1", "0,,1", "1.5", "0-9999999999", "٣,4")),
        ("0-2,1", "names a seed twice"), ("3", "give --seed 3"),
    ],
)  # fmt: skip
def test_other_seeds_are_refused(text, said):
    with pytest.raises(UsageError, match=said):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--seed", "1"], 2, "--seed and --seeds are both given"),
        (["--resume", "{folder}/file"], 2, "auto or never with --seeds"),
        (["--seeds", "0,4294967296"], 2, "seed is 4294967296"),
        (["--out", "{folder}/seed-0"], 6, "holds a finished run already"),
    ],
)
def test_what_does_not_go_with_seeds_is_one_line(whole, tmp_path, capsys, words, code, said):
    (tmp_path / "file").touch()
    (tmp_path / "seed-0").mkdir()
    shutil.copy(whole / "seed-0/results.json", tmp_path / "seed-0")
    words = [word.format(folder=tmp_path) for word in words]
    out = [] if "--out" in words else ["--out", str(tmp_path / "new")]
    assert commands.main([*WORDS, *SEEDS, *words, *out]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "new").exists()


def test_a_foreign_page_is_refused_before_anything_is_trained(tiny, tmp_path, capsys):
    (tmp_path / "compare.html").write_text("precious")
    assert commands.main([*WORDS, *SEEDS, "--out", str(tmp_path)]) == 6
    assert "compare.html is no page of onecycle compare" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["compare.html"]


def test_a_refused_series_leaves_no_folder(tmp_path):
    words = ["train", "--data-dir", "nowhere", *SEEDS, "--out", str(tmp_path / "new")]
    assert commands.main(words) == 3
    assert not (tmp_path / "new").exists()
