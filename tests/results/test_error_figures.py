import io
import warnings
from itertools import pairwise

import numpy as np
import pytest

from onecycle.results.evaluation import ConfusedPair, evaluate_predictions
from onecycle.results.figures.errors import plot_confused_pairs, plot_grad_cam, plot_reliability

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SOURCE = "CIFAR-10 (image folder)"


def evaluation(count=400, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(10, 0.3), count)
    labels = np.where(rng.random(count) < 0.6, probabilities.argmax(1), rng.integers(0, 10, count))
    return evaluate_predictions(probabilities, labels, CLASSES)


def draw_reliability(bins):
    return plot_reliability(bins, calibration_error=0.1234, source=SOURCE)


def draw_pairs(pairs, **options):
    return plot_confused_pairs(pairs, classes=CLASSES, source=SOURCE, **options)


def draw_grad_cam(count, **options):
    rng = np.random.default_rng(0)
    return plot_grad_cam(
        rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.full(count, 3),
        np.full(count, 5), rng.random((count, 32, 32)), rng.random((count, 32, 32)),
        **{"classes": CLASSES} | options, layer="layer3", source=SOURCE,
    )  # fmt: skip


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in (*axes.texts, axes.title)]


DRAWN = {
    "reliability": lambda: draw_reliability(evaluation().bins),
    "pairs": lambda: draw_pairs(evaluation().confused_pairs),
    "grad_cam": lambda: draw_grad_cam(5),
}
EMPTY = {
    "no data": lambda: draw_reliability([]),
    "nothing is misclassified": lambda: draw_pairs([]),
    "nothing is misclassified ": lambda: draw_grad_cam(0),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_figure_renders_without_a_warning_under_a_title_with_its_source(draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw()
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    assert SOURCE in figure.get_suptitle()


@pytest.mark.parametrize("name", ["pairs", "grad_cam"])
def test_class_names_with_dollars_are_no_formulas(monkeypatch, name):
    # As a formula the name would end in an error.
    monkeypatch.setitem(globals(), "CLASSES", ["$a_$"] * 9 + ["$5"])
    DRAWN[name]().savefig(io.BytesIO(), format="png", dpi=40)


@pytest.mark.parametrize("text", EMPTY)
def test_figure_without_data_says_so_and_nothing_else(text):
    figure = EMPTY[text]()
    assert [t for t in texts(figure) if t] == [text.strip()]
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_reliability_shows_each_filled_bin_at_its_accuracy_and_its_size():
    bins = evaluation().bins
    filled = [b for b in bins if b.count]
    upper, lower = draw_reliability(bins).axes
    bars = [(p.get_x(), p.get_height()) for p in upper.patches]
    np.testing.assert_allclose(bars, [(b.low, b.accuracy) for b in filled], atol=1e-9)
    assert [p.get_height() for p in lower.patches] == [b.count for b in filled]
    np.testing.assert_allclose(upper.lines[0].get_xdata(), [b.confidence for b in filled])
    assert "12.34%" in draw_reliability(bins).get_suptitle()


def test_pairs_are_drawn_with_both_directions_the_most_confused_on_top():
    pairs = evaluation().confused_pairs
    (axes,) = draw_pairs(pairs, count=4).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths[:4] == [pair.first_as_second for pair in pairs[:4]]
    assert widths[4:] == [pair.second_as_first for pair in pairs[:4]]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == f"{CLASSES[pairs[0].first]} · {CLASSES[pairs[0].second]}"
    assert axes.yaxis_inverted()


def test_grad_cam_shows_image_and_two_maps_and_names_the_layer_and_the_classes():
    figure = draw_grad_cam(3, columns=2)
    assert "layer3" in figure.get_suptitle()
    shown = [axes for axes in figure.axes if axes.images]
    assert [len(axes.images) for axes in shown] == [1, 2, 2] * 3
    assert [axes.get_title() for axes in shown[:3]] == [
        "cat\n(true class)", "for dog\n(predicted)", "for cat\n(true)",
    ]  # fmt: skip


def test_legend_lies_on_no_bar_and_long_names_on_no_other():
    full = [ConfusedPair(0, 1, 50, 50), ConfusedPair(1, 0, 50, 50)]
    figure = draw_pairs(full * 5)
    figure.draw_without_rendering()
    (legend,), (axes,) = figure.legends, figure.axes
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    names = ["West Highland white terrier"] * 10
    figure = draw_grad_cam(4, classes=names)
    figure.draw_without_rendering()
    for one, other in pairwise(figure.axes[:6]):
        assert not one.title.get_window_extent().overlaps(other.title.get_window_extent())
