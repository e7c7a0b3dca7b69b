import pytest
from tiny_network import WORDS, make_quick

from onecycle import commands


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs of a tiny network, with a name and without."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        named = ["--name", "Mine", "--author", "Ada"]
        assert commands.main([*WORDS, *named, "--out", str(folder / "one")]) == 0
        assert commands.main([*WORDS, "--beta2", "0.9", "--out", str(folder / "two")]) == 0
    return folder / "one", folder / "two"


def compare(*words):
    return commands.main(["compare", *map(str, words)])


def test_real_runs_are_compared_by_their_names(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare(*runs) == 0
    assert capsys.readouterr().out == "Open compare.html\n"
    page = (tmp_path / "compare.html").read_text("utf-8")
    assert "<title>Compared: Mine, two</title>" in page
    assert "Differences from the first run" in page  # the images were recognised as the same
    assert '<span class="run">beta2</span></th><td>0.99</td><td>0.9</td>' in page
    assert '<span class="run">author</span></th><td>Ada</td><td>–</td>' in page
    assert "LRMAX</th>" in page and ">0.01<" in page


def test_only_a_page_of_its_own_is_replaced_without_force(runs, tmp_path, capsys):
    page, other = tmp_path / "page.html", tmp_path / "mine.html"
    other.write_text("precious")
    assert compare(*runs, "--out", page) == 0
    assert compare(*reversed(runs), "--out", page) == 0
    assert "Compared: two, Mine" in page.read_text("utf-8")
    assert compare(*runs, "--out", other) == 6
    error = capsys.readouterr().err
    assert "--force" in error and error.count("\n") == 1
    assert other.read_text() == "precious"
    assert compare(*runs, "--out", other, "--force") == 0
    assert "Compared: Mine" in other.read_text("utf-8")
    assert compare(*runs, "--out", runs[0] / "report.html") == 6  # a report is no such page


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{one}"], 2, "two or more"),
        (["{one}", "{one}"], 2, "named twice"),
        (["{one}", "nowhere"], 4, "nowhere holds no finished run"),
        (["{one}", "{two}", "--out", "missing/page.html"], 6, "missing/page.html"),
        (["{one}", "{two}", "--out", "."], 6, "it is a folder"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    runs, tmp_path, monkeypatch, capsys, words, code, said
):
    monkeypatch.chdir(tmp_path)
    words = [word.format(one=runs[0], two=runs[1]) for word in words]
    assert compare(*words) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
