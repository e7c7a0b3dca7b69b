"""What a reader of figures and report would see at once: clipped texts, odd ticks, wasted room."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text
from sklearn.metrics import precision_recall_fscore_support, top_k_accuracy_score

from onecycle.data.dataset import ImageDataset
from onecycle.optim.lr_finder import LRFinding
from onecycle.records import EpochRecord, History
from onecycle.results.evaluation import evaluate_predictions
from onecycle.results.figures import confusion, errors, training
from onecycle.results.grad_cam import ErrorMaps
from onecycle.results.report import build_report

SOURCE = "pictures of my own (image folder)"
NAMES = {
    "short": lambda k: list("abcdefghijklmnopqrstuvwxyz"[:k]),
    "long": lambda k: [
        f"{i} soft-coated wheaten terrier of the {'west' * 9}"[:60] for i in range(k)
    ],
    "Russian": lambda k: [f"автомобиль {i}" for i in range(k)],
}


def evaluation(classes, count=60, wrong=20, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(classes)
    said = labels.copy()
    said[:wrong] = (said[:wrong] + 1 + rng.integers(0, len(classes) - 1, wrong)) % len(classes)
    probabilities = rng.dirichlet(np.ones(len(classes)), count) * 0.3
    probabilities[np.arange(count), said] += 0.7
    return evaluate_predictions(probabilities, labels, classes)


def data_set(of):
    pixels = np.zeros((len(of.labels), 8, 8, 3), np.uint8)
    return ImageDataset(pixels, of.labels, of.classes, SOURCE)


def epochs(test_losses):
    return [
        EpochRecord(
            epoch=epoch, lr=0.01, train_loss=1 / epoch, train_accuracy=0.9 - 0.5 / epoch,
            test_loss=loss, test_accuracy=0.8 - 0.4 / epoch, train_seconds=1.0, test_seconds=0.1,
        )
        for epoch, loss in enumerate(test_losses, 1)
    ]  # fmt: skip


def finding(lr_min=1e-7):
    lrs = list(np.geomspace(1e-5, 0.1, 20))
    losses = [*np.linspace(2.3, 1, 18), 30.0, 60.0]
    return LRFinding(lrs, losses, losses, lr_max=1e-3, lr_min=lr_min, rule="a rule; another")


def files_of(of):
    return [f"test/{name}/IMG_2026_11_27_{i:06}.jpg" for i, name in enumerate(of.labels)]


def maps_of(of, count=3):
    heat = np.zeros((count, 8, 8))
    return ErrorMaps("layer3", of.wrong[:count], heat, heat)


DRAW = {
    "class_counts": lambda of: training.plot_class_counts(data_set(of)),
    "samples": lambda of: training.plot_samples(
        np.zeros((7, 3, 8, 8)), of.labels[:7], data_set(of), note="The grey square is. " * 9
    ),
    "misclassified": lambda of: errors.plot_misclassified(
        replace(of, files=files_of(of)), data_set(of)
    ),
    "grad_cam": lambda of: errors.plot_grad_cam(of, data_set(of), maps_of(of)),
    "confusion_matrix": lambda of: confusion.plot_confusion_matrix(of, source=SOURCE),
    "confused_pairs": lambda of: confusion.plot_confused_pairs(of, source=SOURCE),
    "reliability": lambda of: errors.plot_reliability(of, source=SOURCE),
}
OF_A_TRAINING = {
    "lr_finder": lambda: training.plot_lr_finder(finding(), source=SOURCE),
    "history": lambda: training.plot_history(History(epochs([6, 2, 1.9, 1.8, 1])), source=SOURCE),
}
CASES = [(name, 10, "long") for name in DRAW] + [
    ("class_counts", 60, "long"), ("class_counts", 2, "short"), ("confusion_matrix", 10, "Russian"),
    ("confusion_matrix", 2, "short"), ("misclassified", 2, "Russian"),
]  # fmt: skip


def drawn_texts(figure):
    """All texts that are drawn, which leaves out the labels of ticks outside an axis."""
    drawn, draw = [], Text.draw

    def note(text, renderer):
        drawn.append(text)
        draw(text, renderer)

    figure.draw_without_rendering()  # lays it out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", note)
        figure.draw_without_rendering()
    return [text for text in drawn if text.get_visible() and text.get_text().strip()]


def assert_all_is_readable(figure):
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn_texts(figure)]
    assert len(boxes) > 5
    for said, box in boxes:
        assert -1 <= box.x0 and box.x1 <= figure.bbox.width + 1, said
        assert -1 <= box.y0 and box.y1 <= figure.bbox.height + 1, said
    title = figure.texts[0].get_window_extent()
    for axes in figure.axes:
        assert not title.overlaps(axes.get_window_extent()), figure.get_suptitle()
        legend = axes.get_legend()
        assert not legend or not legend.get_window_extent().overlaps(axes.get_window_extent())


@pytest.mark.parametrize("name, number, kind", CASES)
def test_no_text_leaves_the_sheet_or_lies_on_the_title(name, number, kind):
    assert_all_is_readable(DRAW[name](evaluation(NAMES[kind](number), 3 * number + 30)))


@pytest.mark.parametrize("name", OF_A_TRAINING)
def test_no_text_of_a_training_leaves_the_sheet_or_lies_on_the_title(name):
    assert_all_is_readable(OF_A_TRAINING[name]())


@pytest.mark.parametrize("name", ["misclassified", "grad_cam", "samples"])
def test_captions_of_neighbours_do_not_touch(name):
    figure = DRAW[name](evaluation(NAMES["long"](10)))
    figure.draw_without_rendering()
    titles = [axes.title.get_window_extent() for axes in figure.axes]
    for one, other in pairwise(titles):
        assert not one.overlaps(other)


def test_counts_have_whole_ticks():
    of = evaluation(["a", "b"], 3, 1)
    counts = DRAW["class_counts"](of).axes[0].yaxis
    pairs = DRAW["confused_pairs"](of).axes[0].xaxis
    images = DRAW["reliability"](of).axes[1].yaxis
    for axis in (counts, pairs, images):
        assert all(float(tick).is_integer() for tick in axis.get_ticklocs())


def test_two_errors_or_none_need_no_whole_sheet():
    two, none = evaluation(NAMES["short"](4), wrong=2), evaluation(NAMES["short"](4), wrong=0)
    assert np.prod(DRAW["misclassified"](two).get_size_inches()) < 20
    for name in ("misclassified", "grad_cam", "confused_pairs"):
        assert DRAW[name](none).get_figheight() < 2.5


def test_only_bars_that_exist_are_in_the_legend():
    labels, said = np.array([0, 0, 1, 2]), np.array([1, 1, 1, 2])
    for extra, entries in (([], 1), ([(1, 0)], 2)):
        true = np.append(labels, [t for t, _ in extra]).astype(int)
        predicted = np.append(said, [p for _, p in extra]).astype(int)
        of = evaluate_predictions(np.eye(3)[predicted], true, ("star", "triangle", "square"))
        figure = DRAW["confused_pairs"](of)
        assert len(figure.legends[0].get_texts()) == entries
        assert figure.axes[0].get_yticklabels()[0].get_text() == "star → triangle"


def test_names_of_files_are_shown_by_figure_and_report():
    of = evaluation(NAMES["short"](4))
    files = files_of(of)
    figure = DRAW["misclassified"](of)
    shown = [axes.get_xlabel() for axes in figure.axes]
    assert shown == [files[i].rpartition("/")[2] for i in of.wrong]
    named = replace(of, files=tuple(files))
    html = build_report({}, named, data_set(of).data, title="x", maps=maps_of(of))
    tooltips = re.findall(r'<li class="tile"[^>]* title="([^"]*)"', html)
    assert tooltips == [files[i] for i in of.wrong]
    assert html.count(f'<li title="{files[of.wrong[0]]}">') == 1  # Grad-CAM's
    without = build_report({}, of, data_set(of).data, title="x")
    assert f'title="image {of.wrong[0]}"' in without


def test_first_loss_does_not_flatten_the_others_and_is_named():
    (_, axes) = training.plot_history(History(epochs([6, 2, 1.9, 1.8, 1])), source=SOURCE).axes
    assert axes.get_ylim()[1] < 3
    assert [text.get_text() for text in axes.texts] == ["up to 6"]
    html = build_report(
        {}, evaluation(["a", "b"]), np.zeros((60, 8, 8, 3), np.uint8), title="x",
        history=History(epochs([6, 2, 1.9, 1.8, 1])),
    )  # fmt: skip
    assert "test ↑ up to 6<" in html
    (_, calm) = training.plot_history(History(epochs([2.4, 2, 1.9, 1.8, 1])), source=SOURCE).axes
    assert calm.get_ylim()[1] > 2.4 and not calm.texts


def test_lrmin_far_below_the_tested_rates_leaves_no_axis_empty():
    (axes,) = training.plot_lr_finder(finding(lr_min=1e-9), source=SOURCE).axes
    assert axes.get_xlim()[0] > 5e-6
    (entry,) = [t.get_text() for t in axes.get_legend().get_texts() if "LRMIN" in t.get_text()]
    assert entry == "LRMIN = 1e-09 (left of the axis)"


@pytest.mark.parametrize(
    "recipe, augmentation, words",
    [
        ({"cutout_size_px": 8, "padding": "constant"}, "batched", ["grey square", "black border"]),
        ({"cutout_size_px": 0, "padding": "constant"}, "batched", ["black border"]),
        ({"cutout_size_px": 0, "padding": "reflect"}, "batched", []),
        ({"cutout_size_px": 8, "padding": "constant"}, "torchvision", []),
    ],
)
def test_samples_are_explained_as_far_as_the_recipe_makes_them(recipe, augmentation, words):
    note = training.samples_note(recipe, augmentation)
    assert [word for word in ("grey square", "black border") if word in note.lower()] == words


def test_averages_in_the_report_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    labels = rng.choice(4, 90, p=(0.6, 0.2, 0.15, 0.05))
    predicted = np.where(rng.random(90) < 0.6, labels, rng.integers(0, 4, 90))
    of = evaluate_predictions(np.eye(4)[predicted], labels, NAMES["short"](4))
    html = build_report({}, of, np.zeros((90, 8, 8, 3), np.uint8), title="x")
    for kind in ("macro", "weighted"):
        row = re.search(rf">{kind} average</th>(.*?)</tr>", html)[1]
        expected = precision_recall_fscore_support(labels, predicted, average=kind)[:3]
        assert re.findall(r"<td>([^<]*)</td>", row) == ["90", *(f"{v:.1%}" for v in expected)]


def test_top_5_is_told_of_more_than_five_classes():
    of = evaluation(NAMES["short"](8))
    expected = top_k_accuracy_score(of.labels, of.probabilities, k=5, labels=range(8))
    assert of.top5_accuracy == of.summary()["top5_accuracy"] == pytest.approx(expected)
    assert of.accuracy < of.top5_accuracy < 1
    assert evaluation(NAMES["short"](5)).top5_accuracy is None


def test_few_images_are_shown_in_fewer_bins_and_the_error_stays():
    few, many = evaluation(NAMES["short"](4), 60), evaluation(NAMES["short"](4), 300)
    assert [len(of.shown_bins) for of in (few, many)] == [5, 15]
    assert len(few.bins) == 15 and many.shown_bins == many.bins
    filled = [bin_ for bin_ in few.shown_bins if bin_.count]
    assert sum(bin_.count for bin_ in filled) == 60
    assert sum(b.count * b.accuracy for b in filled) / 60 == pytest.approx(few.accuracy)
    assert sum(b.count * b.confidence for b in filled) / 60 == pytest.approx(
        few.probabilities.max(1).mean()
    )


def test_several_first_losses_out_of_scale_are_left_out_and_a_normal_start_is_not():
    losses = [3790, 112, 15, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3]
    (_, axes) = training.plot_history(History(epochs(losses)), source=SOURCE).axes
    low, high = axes.get_ylim()
    assert -0.5 < low < 0.2 and 1.9 < high < 4
    assert [text.get_text() for text in axes.texts] == ["up to 3,790"]


@pytest.mark.parametrize("wrong, hinted", [(30, True), (10, False)])
def test_a_network_that_knows_its_training_images_much_better_overfits(wrong, hinted):
    of = evaluation(NAMES["short"](4), wrong=wrong)  # the last training accuracy is 80 %
    html = build_report(
        {}, of, data_set(of).data, title="x", history=History(epochs([1.0] * 5))
    )  # fmt: skip
    assert ("overfits" in html) == hinted
