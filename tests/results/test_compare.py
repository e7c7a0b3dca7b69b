import math
import re
from html.parser import HTMLParser

import pytest
from made_runs import change, make_run

from onecycle.errors import CheckpointError, UsageError
from onecycle.recipe import Recipe
from onecycle.results.compare import compare


class Page(HTMLParser):
    """Tables as rows of texts by caption, and all texts; refuses tags that do not close."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.texts, self.links, self.open = {}, [], [], []
        self.plots, self.rows, self.caption = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "path", "br"):
            self.open.append(tag)
        if tag == "table":
            self.rows, self.caption = [], ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "a" and "#" not in attrs["href"]:
            self.links.append(attrs["href"])
        elif attrs.get("class") == "plot":
            self.plots.append(attrs)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self.caption] = self.rows

    def handle_data(self, data):
        if {"script", "style"} & set(self.open):
            return
        self.texts.append(data)
        if "caption" in self.open:
            self.caption += data
        elif {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def table(self, start):
        (found,) = (rows for caption, rows in self.tables.items() if caption.startswith(start))
        return found


def page_of(*folders, **options):
    return Page(compare(folders, **options))


def test_the_table_has_accuracy_interval_and_origin_of_each_run(tmp_path):
    one = make_run(tmp_path / "one", wrong=range(6), name="first")
    two = make_run(tmp_path / "two", wrong=range(3))
    head, first, second = page_of(one, two).table("The trained networks")
    row = dict(zip(head, first, strict=True))
    assert (row["run"], row["accuracy"], row["95 % interval"]) == (
        "first", "90.00%", "79.85% to 95.34%",
    )  # fmt: skip
    assert (row["LRMAX"], row["parameters"], row["training"]) == ("0.01", "6,573,130", "6.0 s")
    assert row["begun"] == "2026-11-27 06:19 +0100"
    assert second[:2] == ["two", "95.00%"]


def test_the_difference_is_tested_on_the_images_that_one_run_alone_has_right(tmp_path):
    first = make_run(tmp_path / "first", wrong=range(10))
    same = make_run(tmp_path / "same", wrong=[*range(2, 10), 20, 21])
    worse = make_run(tmp_path / "worse", wrong=range(30))
    rows = page_of(first, same, worse).table("Differences from the first run")
    assert rows[1:] == [
        ["same", "+0.00", "2", "2", "1", "can be chance"],
        ["worse", "-33.33", "0", "20", "< 0.0001", "is unlikely to be chance"],
    ]


def test_the_images_are_named_with_the_most_confident_error_first(tmp_path):
    first = make_run(tmp_path / "first", wrong=[3, 4], files=True)
    second = make_run(tmp_path / "second", wrong=[4, *range(5, 58)], images=60)
    page = page_of(first, second)
    assert page.table("Right in second, wrong in first: 1")[1:] == [
        ["pictures/3.png", "cat", "dog", "62%"]
    ]
    rows = page.table("Right in first, wrong in second: 53")[1:]
    assert [row[0] for row in rows] == [str(n) for n in range(57, 7, -1)]
    assert "and 3 more" in page.text


def test_runs_on_other_images_are_shown_without_the_test(tmp_path):
    first = make_run(tmp_path / "first", wrong=range(5))
    other = make_run(tmp_path / "other", wrong=range(9), images_sha256=["a", "another"])
    page = page_of(first, other)
    assert "other was not evaluated on the same images as first" in page.text
    assert "Differences from the first run" not in page.tables
    assert not [caption for caption in page.tables if caption.startswith("Right in")]
    assert len(page.table("The trained networks")) == 3


def test_without_digests_source_and_number_tell_whether_the_images_are_the_same(tmp_path):
    first = make_run(tmp_path / "first", wrong=range(5), images_sha256=None)
    like = make_run(tmp_path / "like", wrong=range(6))
    fewer = make_run(tmp_path / "fewer", wrong=range(6), images=57)
    page = page_of(first, like, fewer)
    assert [row[0] for row in page.table("Differences from the first run")[1:]] == ["like"]
    assert "fewer was not evaluated on the same images" in page.text


def test_a_run_without_a_table_of_errors_is_shown_without_the_test(tmp_path):
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", wrong=[1])
    (second / "errors.csv").unlink()
    assert "second has no errors.csv" in page_of(first, second).text


def test_only_settings_that_differ_are_shown(tmp_path):
    recipes = (
        Recipe(epochs=4, weight_decay=0.1, lr_ratio=200),
        Recipe(epochs=4, seed=3, lr_ratio=200.000001),
    )
    one, two = (
        make_run(tmp_path / name, recipe=recipe)
        for name, recipe in zip(("one", "two"), recipes, strict=True)
    )
    change(two, lambda results: results["machine"]["versions"].update(torch="2.15.0"))
    rows = page_of(one, two).table("Only what differs")
    assert rows == [
        ["setting", "one", "two"], ["lr ratio", "200", "200.000001"],
        ["weight decay", "0.1", "0.6"], ["seed", "0", "3"], ["torch version", "2.14.1", "2.15.0"],
    ]  # fmt: skip


def test_equal_settings_are_said_to_be_equal(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    assert "Recipe, parts, images, machine and code are the same." in page_of(one, two).text


def test_curves_of_different_lengths_share_a_frame(tmp_path):
    short, long = make_run(tmp_path / "short", epochs=2), make_run(tmp_path / "long", epochs=5)
    page = page_of(short, long)
    assert len(page.plots) == 5
    accuracy = page.plots[0]
    assert accuracy["aria-valuemax"] == "4"  # five epochs, though the first run has two
    assert re.match(r"epoch 5: long [\d.]+%$", accuracy["aria-valuetext"])
    assert re.search(r"epoch 2: short [\d.]+%, long [\d.]+%", accuracy["data-points"])


def test_classes_stand_beside_each_other_with_the_best_in_bold(tmp_path):
    one = make_run(tmp_path / "one", wrong=[0, 3])  # cats
    two = make_run(tmp_path / "two", wrong=[1])  # a dog
    html = compare([one, two])
    assert Page(html).table("Accuracy of each class")[1:] == [
        ["cat", "20", "90.0%", "100.0%"], ["dog", "20", "100.0%", "95.0%"],
        ["owl", "20", "100.0%", "100.0%"],
    ]  # fmt: skip
    assert html.count("<b>100.0%</b>") == 2


@pytest.mark.parametrize("count, classes", [(2, 2), (5, 10), (12, 100), (20, 3)])
def test_many_runs_and_classes_make_a_whole_page(tmp_path, count, classes):
    names = [f"class {k}" for k in range(classes)]
    folders = [
        make_run(tmp_path / f"{k}", wrong=range(k), classes=names, images=200, name="a" * 80)
        for k in range(count)
    ]
    page = page_of(*folders)
    rows = page.table("Accuracy of each class")
    assert (len(rows), len(rows[0])) == (classes + 1, count + 2)
    labels = [row[0] for row in page.table("The trained networks")[1:]]
    assert len(set(labels)) == count  # though all have one name
    assert max(map(len, labels)) < 45


def test_texts_are_escaped_and_nothing_is_fetched(tmp_path):
    evil = "<script>alert(1)</script>&\"'"
    one = make_run(tmp_path / "one", wrong=[0], classes=(evil, "dog", "owl"), name=evil[:30])
    two = make_run(tmp_path / "two", wrong=[1], classes=(evil, "dog", "owl"))
    change(two, lambda results: results["run"].update(author=evil, date=evil))
    html = compare([one, two])
    assert "<script>alert" not in html and html.count("<script>") == 1
    assert evil in Page(html).text
    assert "default-src 'none'" in html and "http" not in html.replace("http-equiv", "")


def test_names_lead_to_the_reports_from_where_the_page_is(tmp_path):
    one, two = make_run(tmp_path / "runs/a b#1"), make_run(tmp_path / "runs/two")
    (two / "report.html").unlink()
    assert page_of(one, two, out_dir=tmp_path / "pages").links == ["../runs/a%20b%231/report.html"]
    assert page_of(one, two).links == []


def older(results):
    for name in ("run", "images_sha256", "parts"):
        del results[name]
    del results["recipe"]["lr_min"]


def test_results_from_before_runs_had_names_still_open(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    change(one, older)
    head, first, _ = page_of(one, two).table("The trained networks")
    row = dict(zip(head, first, strict=True))
    assert (row["run"], row["parameters"], row["begun"]) == ("one", "–", "–")
    assert row["training"] == "6.0 s"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda results: results.pop("history"), "an evaluation and no training"),
        (lambda results: results.pop("recipe"), "no results of a run"),
        (lambda results: results.pop("evaluation"), "evaluation is missing"),
        (lambda results: results.update(learning_rate=None), "learning_rate is None"),
        (lambda results: results["history"].append(3), "history row 5 is 3"),
        (lambda results: results["evaluation"].update(errors=7), "7 errors in 60 images"),
        (lambda results: results["evaluation"].update(errors=70), "70 errors in 60 images"),
        (lambda results: results["evaluation"].update(images=math.inf), "Infinity is no number"),
        (lambda results: results.update(run="mine"), "run is 'mine'"),
        (lambda results: results["run"].update(seconds="long"), "run.seconds is 'long'"),
    ],
)
def test_a_folder_that_holds_no_whole_run_is_named(tmp_path, edit, said):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", wrong=[3])
    change(two, edit)
    with pytest.raises(CheckpointError, match=said) as caught:
        compare([one, two])
    assert "two" in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_of_errors_that_is_none_is_named(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", wrong=[3])
    (two / "errors.csv").write_bytes(b"\xff\x00")
    with pytest.raises(CheckpointError, match="two/errors.csv has 0 images"):
        compare([one, two])


def test_a_stopped_run_is_told_how_to_end(tmp_path):
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "last.ckpt").touch()
    one = make_run(tmp_path / "one")
    with pytest.raises(CheckpointError, match="resume it"):
        compare([one, stopped])
    with pytest.raises(CheckpointError, match="missing holds no finished run"):
        compare([one, tmp_path / "missing"])


def test_two_different_runs_are_needed(tmp_path):
    one = make_run(tmp_path / "one")
    with pytest.raises(UsageError, match="two folders or more"):
        compare([one])
    with pytest.raises(UsageError, match="named twice"):
        compare([one, tmp_path / "other" / ".." / "one"])
