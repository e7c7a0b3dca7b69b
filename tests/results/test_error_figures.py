import io
import warnings
from itertools import pairwise

import numpy as np
import pytest

from onecycle.data.dataset import ImageDataset
from onecycle.results.evaluation import evaluate_predictions
from onecycle.results.figures.confusion import plot_confused_pairs
from onecycle.results.figures.errors import plot_grad_cam, plot_reliability
from onecycle.results.grad_cam import ErrorMaps

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SOURCE = "CIFAR-10 (image folder)"


def evaluation(count=400, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(10, 0.3), count)
    labels = np.where(rng.random(count) < 0.6, probabilities.argmax(1), rng.integers(0, 10, count))
    return evaluate_predictions(probabilities, labels, CLASSES)


def perfect():
    return evaluate_predictions(np.eye(10), np.arange(10), CLASSES)


def draw_reliability(of):
    return plot_reliability(of, source=SOURCE)


def draw_pairs(of, **options):
    return plot_confused_pairs(of, source=SOURCE, **options)


def draw_grad_cam(count, *, classes=None, layer="layer3", **options):
    """Of cats that are predicted as dogs."""
    rng = np.random.default_rng(0)
    labels, size = np.full(max(count, 1), 3), (count, 32, 32)
    images = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    of = evaluate_predictions(np.eye(10)[labels + 2], labels, classes or CLASSES)
    maps = ErrorMaps(layer, np.arange(count), rng.random(size), rng.random(size))
    return plot_grad_cam(of, ImageDataset(images, labels, of.classes, SOURCE), maps, **options)


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in (*axes.texts, axes.title)]


DRAWN = {
    "reliability": lambda: draw_reliability(evaluation()),
    "pairs": lambda: draw_pairs(evaluation()),
    "grad_cam": lambda: draw_grad_cam(5),
}
EMPTY = {
    "nothing is misclassified": lambda: draw_pairs(perfect()),
    "nothing is misclassified ": lambda: draw_grad_cam(0),
    "no layer with a map": lambda: draw_grad_cam(0, layer=""),
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
    monkeypatch.setitem(globals(), "CLASSES", ("$a_$",) * 9 + ("$5",))
    DRAWN[name]().savefig(io.BytesIO(), format="png", dpi=40)


@pytest.mark.parametrize("text", EMPTY)
def test_figure_without_data_says_so_and_nothing_else(text):
    figure = EMPTY[text]()
    assert [t for t in texts(figure) if t] == [text.strip()]
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_reliability_shows_each_filled_bin_at_its_accuracy_and_its_size():
    of = evaluation()
    filled = [b for b in of.bins if b.count]
    figure = draw_reliability(of)
    upper, lower = figure.axes
    bars = [(p.get_x(), p.get_height()) for p in upper.patches]
    np.testing.assert_allclose(bars, [(b.low, b.accuracy) for b in filled], atol=1e-9)
    assert [p.get_height() for p in lower.patches] == [b.count for b in filled]
    assert [text.get_text() for text in lower.texts] == [str(b.count) for b in filled]
    (dots,) = [line for line in upper.lines if line.get_label() == "mean confidence"]
    np.testing.assert_allclose(dots.get_xdata(), [b.confidence for b in filled])
    assert f"{100 * of.calibration_error:.2f} points" in figure.get_suptitle()


def test_pairs_are_drawn_with_both_directions_the_most_confused_on_top():
    of = evaluation()
    pairs = of.confused_pairs
    (axes,) = draw_pairs(of, count=4).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths[:4] == [pair.first_as_second for pair in pairs[:4]]
    assert widths[4:] == [pair.second_as_first for pair in pairs[:4]]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == f"{CLASSES[pairs[0].first]} → {CLASSES[pairs[0].second]}"
    assert axes.yaxis_inverted()


def test_grad_cam_shows_image_and_two_maps_and_names_the_layer_and_the_classes():
    figure = draw_grad_cam(3, columns=2)
    assert "layer3" in figure.get_suptitle()
    shown = [axes for axes in figure.axes if axes.images]
    assert [len(axes.images) for axes in shown] == [1, 2, 2] * 3
    assert [axes.get_title() for axes in shown[:3]] == [
        "cat\n(true class)", "for dog\n(predicted class)", "for cat\n(true class)",
    ]  # fmt: skip


@pytest.mark.parametrize("draw", [draw_reliability, draw_pairs])
def test_legend_lies_on_nothing_that_is_drawn(draw):
    labels = np.arange(10)  # both directions of each pair as often: bars of full length
    figure = draw(evaluate_predictions(np.eye(10)[labels ^ 1], labels, CLASSES))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    for axes in figure.axes:
        assert not axes.get_legend()
        assert not legend.get_window_extent().overlaps(axes.get_tightbbox())


def test_long_names_lie_on_no_other():
    figure = draw_grad_cam(4, classes=["West Highland white terrier"] * 10)
    figure.draw_without_rendering()
    for one, other in pairwise(figure.axes[:6]):
        assert not one.title.get_window_extent().overlaps(other.title.get_window_extent())
