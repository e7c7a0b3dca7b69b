import base64
import hashlib
import io
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from onecycle.records import EpochRecord, History, StepRecord
from onecycle.results.evaluation import evaluate_predictions
from onecycle.results.grad_cam import ErrorMaps
from onecycle.results.report import build_report

CLASSES = ("cat", "<script>alert(1)</script>", 'a "quoted" & odd', "猫", "кіт")
VOID = {"meta", "br", "path", "rect", "input", "link", "img"}


class Page(HTMLParser):
    """Elements with their attributes and texts; refuses tags that do not close."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    def having(self, name):
        return [attrs for _, attrs in self.elements if name in attrs]

    def of_class(self, name):
        return [a for _, a in self.elements if name in (a.get("class") or "").split()]


def made_evaluation(count=60, wrong=20, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    said = labels.copy()
    said[:wrong] = (labels[:wrong] + rng.integers(1, len(CLASSES), wrong)) % len(CLASSES)
    probabilities = rng.dirichlet(np.ones(len(CLASSES)), count) * 0.4
    probabilities[np.arange(count), said] += 0.6
    return evaluate_predictions(probabilities, labels, CLASSES)


def made_run():
    """Recipe, data, learning rates and machine."""
    lrs = list(np.geomspace(1e-5, 0.1, 30))
    return {
        "recipe": {"epochs": 4, "seed": 7, "lr_max": None},
        "data": {
            "source": "a <b>source</b>", "classes": CLASSES, "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.2, 0.3), "evaluated_on": "test images",
        },
        "learning_rate": {
            "lrs": lrs, "losses": [2.0] * 30, "smoothed": list(np.linspace(2, 1, 30)),
            "lr_max": 0.01, "lr_min": 0.0005, "rule": "so & so",
        },
        "machine": {"device": "cpu", "versions": {"torch": "2.14.1"}},
    }  # fmt: skip


def made_history(epochs=4, steps=1000):
    return History(
        epochs=[
            EpochRecord(
                epoch=e, lr=0.01, train_loss=1 / e, train_accuracy=1 - 0.5 / e,
                test_loss=1.1 / e, test_accuracy=0.9 - 0.4 / e, train_seconds=1.0, test_seconds=0.1,
            )
            for e in range(1, epochs + 1)
        ],
        steps=[StepRecord(i, 0.001 * (i + 1), 1.0) for i in range(steps)],
    )  # fmt: skip


def made_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def made_report(run=None, evaluation=None, **options):
    evaluation = evaluation or made_evaluation()
    images = made_images(len(evaluation.labels))
    indices = evaluation.wrong[:3]
    heat = np.random.default_rng(0).random((len(indices), 32, 32))
    given = {
        "title": "A run of <i>mine</i>",
        "history": made_history(),
        "samples": (np.zeros((2, 3, 32, 32), np.float32), [1, 3]),
        "maps": ErrorMaps("layer3", indices, heat, heat),
        "command": "python train.py --out 'a & b'",
    }
    return build_report(made_run() if run is None else run, evaluation, images, **given | options)


@pytest.fixture(scope="module")
def page():
    return Page(made_report())


def sprite(html, name):
    data = re.search(rf"\.{name}\{{background-image:url\(data:image/png;base64,([^)]+)\)", html)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_page_is_whole_and_has_all_parts(page):
    headings = [a["id"] for tag, a in page.elements if tag == "h2"]
    assert headings == [
        f"{name}-title" for name in ("curves", "classes", "errors", "grad-cam", "calibration",
                                     "learning-rate", "samples", "recipe", "reproduce")
    ]  # fmt: skip
    links = {a["href"][1:] for tag, a in page.elements if tag == "a"}
    assert links <= {a["id"] for a in page.having("id")}


def test_headline_is_the_accuracy_of_the_images_with_their_source(page):
    text = "".join(page.texts)
    assert "66.67% accuracy: 40 of 60 test images, after the last epoch (4)" in text
    assert "a <b>source</b>" in text


@pytest.mark.parametrize("source, noted", [("CIFAR-10 (image folder)", True), ("CIFAR-10", False)])
def test_pictures_that_may_be_encoded_again_get_a_note(source, noted):
    run = made_run()
    run["data"]["source"] = source
    page = Page(made_report(run=run))
    assert ("do not compare" in "".join(page.texts)) == noted


def test_every_text_is_escaped(page):
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and "i" in tags
    text = "".join(page.texts)
    for name in CLASSES:
        assert name in text
    assert "A run of <i>mine</i>" in text and "python train.py --out 'a & b'" in text
    values = [value for _, attrs in page.elements for value in attrs.values()]
    assert any(value and CLASSES[2] in value for value in values)  # whole, inside an attribute


def test_page_names_nothing_outside_itself():
    html = made_report()
    html = re.sub(r"base64,[^)]+", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|\bsrc=", html)
    assert set(re.findall(r"url\((\w+):", html)) == {"data"}


def test_policy_allows_the_script_of_the_page_and_no_other():
    html = made_report()
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "script-src 'unsafe" not in policy


def test_gallery_has_every_error_once_the_surest_first_with_its_pixels():
    evaluation = made_evaluation()
    html = made_report(evaluation=evaluation)
    tiles = [a for a in Page(html).of_class("tile") if "data-true" in a]
    wrong = evaluation.wrong
    assert [(int(t["data-true"]), int(t["data-predicted"])) for t in tiles] == [
        (evaluation.labels[i], evaluation.predicted[i]) for i in wrong
    ]
    sheet, images = sprite(html, "errors"), made_images(60)
    for place, i in enumerate(wrong):
        row, column = divmod(place, 20)
        shown = sheet[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        assert (shown == images[i]).all()
    assert all(a["aria-label"] for a in Page(html).of_class("px"))


def test_cells_of_the_confusion_matrix_lead_to_their_errors():
    evaluation = made_evaluation()
    cells = {
        (int(a["data-true"]), int(a["data-predicted"])): a["aria-label"]
        for a in Page(made_report(evaluation=evaluation)).having("data-predicted")
        if "aria-label" in a
    }
    off = evaluation.confusion * ~np.eye(len(CLASSES), dtype=bool)
    assert set(cells) == {(t, p) for t, p in zip(*map(list, np.nonzero(off)))}
    for (t, p), said in cells.items():
        assert said == f"{off[t, p]} of {CLASSES[t]} predicted as {CLASSES[p]}: show them"


def test_charts_tell_every_epoch_and_thin_the_steps_but_for_first_and_last(page):
    charts = {a["aria-label"]: json.loads(a["data-points"]) for a in page.of_class("plot")}
    assert list(charts) == [
        "Accuracy, by epoch", "Loss, by epoch",
        "Confidence and accuracy, by probability of the predicted class",
        "Range test, by learning rate", "Learning rate of each step, by step",
    ]  # fmt: skip
    accuracy = [text for _, text, _ in charts["Accuracy, by epoch"]]
    assert accuracy[0] == "epoch 1: test 50.00%, train 50.00%"
    assert accuracy[3] == "epoch 4: test 80.00%, train 87.50%"
    assert [x for x, _, _ in charts["Accuracy, by epoch"]] == [0, 33.33, 66.67, 100]
    rates = charts["Learning rate of each step, by step"]
    assert len(rates) <= 400
    assert (rates[0][1], rates[-1][1]) == (
        "step 0: learning rate 0.001", "step 999: learning rate 1",
    )  # fmt: skip
    x, text, _ = charts["Range test, by learning rate"][0]
    assert x == 0 and text == "learning rate 1e-05: loss 2.000, smoothed 2.000 nats"


def test_epochs_on_an_axis_are_whole():
    html = made_report(history=made_history(epochs=5))
    ticks = re.findall(r'class="xt"[^>]*>([^<]+)<', html.split('id="classes"')[0])
    assert ticks == 2 * ["1", "2", "3", "4", "5"]


def test_a_single_epoch_can_be_seen_at_its_place():
    html = made_report(history=made_history(epochs=1)).split('id="classes"')[0]
    assert re.findall(r'class="xt"[^>]*>([^<]+)<', html) == ["1", "1"]
    drawn = re.findall(r'<path class="(\w+) (?:first|second)" d="M50 [^"]*"/>', html)
    assert drawn == ["dots"] * 4  # a line of one point would show nothing
    for figure in html.split("<figure")[1:]:
        marks = re.findall(r'class="yt"[^>]*>([^<]+)<', figure)
        assert len(marks) > 2 and len(set(marks)) == len(marks)


def test_lrmin_below_the_first_rate_of_the_range_test_is_named_at_the_edge_without_a_line():
    run = made_run()
    run["learning_rate"] |= {"lr_max": 1e-4, "lr_min": 5e-7}
    html = made_report(run=run)
    (left,) = re.findall(r'class="mt [^"]*" style="left:([^%]+)%">← LRMIN', html)
    assert float(left) == 0
    assert html.count('class="mark"') == 1  # LRMAX's


@pytest.mark.parametrize(
    ("confidence", "said"),
    [(0.75, "neither over- nor underconfident"), (0.9, "is overconfident"), (0.6, "is underc")],
)
def test_confidence_is_compared_with_the_accuracy(confidence, said):
    probabilities = np.tile([confidence, 1 - confidence], (40, 1))
    evaluation = evaluate_predictions(probabilities, np.arange(40) % 4 == 3, ("a", "b"))
    assert said in build_report({}, evaluation, made_images(40), title="So sure")


def test_no_axis_shows_more_than_all_images():
    history = made_history(epochs=40)
    history.epochs = [
        replace(row, test_accuracy=0.6 + row.epoch / 101, train_accuracy=0.6 + row.epoch / 101)
        for row in history.epochs
    ]
    html = made_report(history=history).split("Loss, by epoch")[0]
    shares = [float(text) for text in re.findall(r'class="yt"[^>]*>([\d.]+)%<', html)]
    assert shares and max(shares) <= 100


def test_samples_have_their_normalisation_taken_back():
    sheet = sprite(made_report(), "samples")
    assert (sheet == np.round([127.5, 102, 76.5]).astype(np.uint8)).all()


def test_heat_is_laid_over_the_images_it_belongs_to():
    evaluation = made_evaluation()
    indices = evaluation.wrong[:2]
    cold = np.zeros((2, 32, 32))
    hot = cold.copy()
    hot[0] = 1
    maps = ErrorMaps("layer2", indices, hot, cold)
    sheet = sprite(made_report(evaluation=evaluation, maps=maps), "cam")
    panels = sheet.reshape(32, 6, 32, 3).swapaxes(0, 1).astype(int)
    images = made_images(60)[indices].astype(int)
    assert (panels[0] == images[0]).all() and (panels[3] == images[1]).all()
    assert (panels[1] - panels[2]).mean() > 60  # the heat for the predicted class is bright
    np.testing.assert_allclose(panels[2], 0.45 * images[0], atol=6)


def test_parts_that_are_not_known_are_left_out():
    evaluation = made_evaluation()
    html = build_report({}, evaluation, made_images(60), title="Weights")
    page = Page(html)
    assert [a["id"] for tag, a in page.elements if tag == "section"] == [
        "classes", "errors", "calibration",
    ]  # fmt: skip
    assert "40 of 60 images, with the given weights" in "".join(page.texts)


def test_history_of_an_older_results_file_is_shown_as_well():
    run = made_run() | {"history": [asdict(row) for row in made_history().epochs]}
    assert "after the last epoch (4)" in "".join(Page(made_report(run=run, history=None)).texts)
    with_steps = made_report(run=run, history=made_history(steps=0))
    assert made_report(run=run, history=None) == with_steps


def test_network_without_a_layer_with_a_map_has_no_part_for_it():
    nothing = np.zeros((0, 32, 32))
    page = Page(made_report(maps=ErrorMaps("", np.zeros(0, int), nothing, nothing)))
    assert "grad-cam" not in [a["id"] for tag, a in page.elements if tag == "section"]


def test_accuracy_with_mirror_images_is_told_in_the_strip():
    labels = np.arange(10) % len(CLASSES)
    guesses = np.eye(len(CLASSES))[(labels + 1) % len(CLASSES)]
    evaluation = evaluate_predictions(
        guesses, labels, CLASSES, mirrored=np.eye(len(CLASSES))[labels]
    )
    texts = Page(made_report(evaluation=evaluation)).texts
    assert texts[texts.index("accuracy with flip TTA") + 1] == "100.00%"
    assert sum("mirror image" in text for text in texts) == 1  # what it means, once
    assert "flip TTA" not in "".join(Page(made_report()).texts).replace("Flip", "flip")


def test_network_without_an_error_and_run_without_test_figures():
    labels = np.arange(10) % len(CLASSES)
    perfect = evaluate_predictions(np.eye(len(CLASSES))[labels], labels, CLASSES)
    history = made_history(epochs=1)
    history.epochs = [replace(history.epochs[0], test_loss=None, test_accuracy=None)]
    page = Page(made_report(history=history, evaluation=perfect))
    assert "Nothing is misclassified." in page.texts
    assert [a for a in page.of_class("plot")][0]["aria-valuetext"] == "epoch 1: train 50.00%"


def test_gallery_stops_where_the_file_would_grow_too_large_and_says_so():
    count = 1300
    labels = np.zeros(count, int)
    probabilities = np.tile([0.2, 0.8], (count, 1))
    evaluation = evaluate_predictions(probabilities, labels, ("a", "b"))
    noise = made_images(count)  # no picture packs worse
    html = build_report({}, evaluation, noise, title="All wrong")
    assert len(Page(html).of_class("tile")) == 1200
    assert "1,200 most confident" in html and len(html) < 5_500_000


def test_same_run_gives_the_same_file():
    assert made_report() == made_report()


def test_the_head_says_where_the_run_comes_from():
    origin = {
        "name": "a", "author": "<i>Ada</i>", "date": "2026-11-27T06:19:55+01:00", "seconds": 4000.0,
        "parameters": 6573130, "commit": "0123456789ab+changes",
    }  # fmt: skip
    texts = Page(made_report(made_run() | {"run": origin})).texts
    assert (
        "by <i>Ada</i> · begun 2026-11-27 06:19 +0100 · 66.7 min of training · "
        "6,573,130 parameters · code 0123456789ab+changes"
    ) in "".join(texts)
    assert Page(made_report()).of_class("origin") == []


def recipe_of(run):
    facts = re.search(r'<h3>Training</h3><dl class="facts">(.*?)</dl>', made_report(run))[1]
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", facts))


def test_the_recipe_has_the_learning_rates_that_were_used_and_the_finder_only_if_it_ran():
    run = made_run()
    run["recipe"] |= {"finder_steps": 40, "finder_end_lr": 0.1}
    shown = recipe_of(run)
    assert (shown["lr max"], shown["lr min"], shown["finder steps"]) == ("0.01", "0.0005", "40")
    run["recipe"]["lr_max"] = 0.02
    run["learning_rate"] = {"lr_max": 0.02, "lr_min": 0.0001, "rule": "so"}
    shown = recipe_of(run)
    assert (shown["lr max"], shown["lr min"]) == ("0.02", "0.0001")
    assert not [name for name in shown if "finder" in name]
