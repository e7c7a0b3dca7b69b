import io
import re
import warnings
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.metrics import confusion_matrix

from onecycle.data.dataset import CIFAR10_MEAN, CIFAR10_STD, ImageDataset
from onecycle.optim.lr_rule import LRFinding
from onecycle.records import EpochRecord, History, StepRecord
from onecycle.results.evaluation import evaluate_predictions
from onecycle.results.figures.confusion import plot_confusion_matrix
from onecycle.results.figures.errors import plot_misclassified
from onecycle.results.figures.training import (
    plot_class_counts,
    plot_history,
    plot_lr_finder,
    plot_lr_history,
    plot_samples,
)
from transformation import get_test_aug_transform

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SOURCE = "CIFAR-10 (image folder)"
NAN = float("nan")


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def random_labels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 10, count)


def random_probabilities(count, seed=1):
    return np.random.default_rng(seed).dirichlet(np.full(10, 0.3), count).astype(np.float32)


def sweep(steps):
    """Rates and losses of a range test that falls and diverges at its end."""
    lrs = np.geomspace(1e-5, 0.1, steps)
    losses = 2.3 - np.sin(np.linspace(0, 2.5, steps)) + 50 * (lrs > 0.06)
    return list(lrs), list(losses)


def epoch_records(count):
    return [
        EpochRecord(
            epoch=epoch, lr=0.01 / epoch, train_loss=2 / (epoch + 1 / 3),
            train_accuracy=1 - 1 / (epoch + 1.7), test_loss=2.2 / (epoch + 1 / 7),
            test_accuracy=0.95 - 1 / (epoch + 2.3), train_seconds=1.0, test_seconds=0.1,
        )
        for epoch in range(1, count + 1)
    ]  # fmt: skip


def step_records(rates):
    steps = [StepRecord(step=step, lr=rate, loss=1.0) for step, rate in enumerate(rates)]
    return History(steps=steps)


def one_cycle_rates():
    return [*np.linspace(0.0005, 0.01, 20), *np.linspace(0.01, 0.0007, 77)[1:]]


def confusing_labels():
    """7 is never true, 3 is never predicted, 5 is neither; about half is right."""
    labels, predicted = random_labels(400, seed=2), random_labels(400, seed=3)
    labels[np.isin(labels, (5, 7))] = 2
    predicted[::2] = labels[::2]
    predicted[np.isin(predicted, (3, 5))] = 8
    return labels, predicted


def data_set(targets=(0,), images=None, classes=None):
    images = pixels(len(targets)) if images is None else images
    return ImageDataset(images, targets, classes or CLASSES, SOURCE)


def evaluation(labels, probabilities, classes=None):
    return evaluate_predictions(probabilities, labels, classes or CLASSES)


def certain(predicted, num_classes=10):
    """Probabilities of 1 for the predicted classes."""
    return np.eye(num_classes)[predicted]


def draw_class_counts(count):
    return plot_class_counts(data_set(random_labels(count)))


def draw_samples(images, labels=None, **options):
    labels = random_labels(len(images)) if labels is None else labels
    return plot_samples(images, labels, data_set(), **options)


def grey(*values):
    return np.stack([np.full((3, 32, 32), value, np.float32) for value in values])


def draw_lr_finder(lrs, losses, smoothed=None):
    found = LRFinding(
        lrs, losses, losses if smoothed is None else smoothed,
        lr_max=0.0123456, lr_min=0.000617, rule="half of it; see there",
    )  # fmt: skip
    return plot_lr_finder(found, source=SOURCE)


def draw_history(epochs):
    return plot_history(History(epochs=epochs), source=SOURCE)


def draw_lr_history(rates):
    return plot_lr_history(step_records(rates), source=SOURCE, steps_per_epoch=4)


def draw_misclassified(size, probabilities=None, labels=None, **options):
    labels = random_labels(size) if labels is None else labels
    probabilities = random_probabilities(size) if probabilities is None else probabilities
    of = evaluation(labels, probabilities)
    return plot_misclassified(of, data_set(labels), **options)


def draw_confusion_matrix(labels, predicted, classes=None):
    classes = classes or CLASSES
    of = evaluation(labels, certain(predicted, len(classes)), classes)
    return plot_confusion_matrix(of, source=SOURCE)


TYPICAL = {
    "class_counts": lambda: draw_class_counts(500),
    "samples": lambda: draw_samples(grey(-1, 0, 1, 2)),
    "lr_finder": lambda: draw_lr_finder(*sweep(40)),
    "history": lambda: draw_history(epoch_records(24)),
    "lr_history": lambda: draw_lr_history(one_cycle_rates()),
    "misclassified": lambda: draw_misclassified(5),
    "confusion_matrix": lambda: draw_confusion_matrix(*confusing_labels()),
}
ONE_VALUE = {
    "class_counts": lambda: draw_class_counts(1),
    "samples": lambda: draw_samples(grey(0.5)),
    "lr_finder": lambda: draw_lr_finder([0.001], [2.3]),
    "history": lambda: draw_history(epoch_records(1)),
    "lr_history": lambda: draw_lr_history([0.01]),
    "misclassified": lambda: draw_misclassified(1),
    "confusion_matrix": lambda: draw_confusion_matrix([0], [1], CLASSES[:3]),
}
EMPTY = {
    "samples": lambda: draw_samples(np.zeros((0, 3, 32, 32), np.float32)),
    "lr_finder": lambda: draw_lr_finder([], []),
    "lr_finder, all NaN": lambda: draw_lr_finder([1e-3, 1e-2], [NAN, NAN]),
    "history": lambda: draw_history([]),
    "lr_history": lambda: draw_lr_history([]),
    "misclassified, all right": lambda: draw_misclassified(10, np.eye(10), np.arange(10)),
}
WITH_NAN = {
    "samples": lambda: draw_samples(grey(NAN)),
    "lr_finder, last steps": lambda: draw_lr_finder(sweep(8)[0], [*sweep(8)[1][:6], np.inf, NAN]),
    "lr_finder, first steps": lambda: draw_lr_finder(sweep(8)[0], [NAN, NAN, *sweep(8)[1][2:]]),
    "history": lambda: draw_history(
        [
            replace(epoch_records(1)[0], test_loss=NAN),
            replace(epoch_records(2)[1], test_loss=NAN, train_accuracy=NAN),
        ]
    ),
    "history, without tests": lambda: draw_history(
        [replace(record, test_loss=None, test_accuracy=None) for record in epoch_records(3)]
    ),
    "lr_history": lambda: draw_lr_history([0.1, NAN, 0.3, 0.2]),
}


def cases(*groups):
    return [
        pytest.param(draw, id=f"{name} {group}")
        for group, members in groups
        for name, draw in members.items()
    ]


def drawn_and_rendered(draw):
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw()
        figure.savefig(stream, format="png", dpi=20)
    assert stream.getvalue().startswith(b"\x89PNG")
    return figure


def assert_title_is_inside(figure):
    (title,) = [text for text in figure.texts if text.get_text() == figure.get_suptitle()]
    box = title.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def words(figure):
    """All that the figure says outside its axes and in their texts."""
    return [text.get_text() for part in (figure, *figure.axes) for text in part.texts]


def lines(axes):
    return {line.get_label().split(",")[0].split(" =")[0]: line for line in axes.get_lines()}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def pictures(figure):
    """(picture as uint8, caption with its line break as a blank) in the order of reading."""
    shown = []
    for axes in figure.axes:
        for image in axes.get_images():
            array = np.asarray(image.get_array())
            if array.dtype != np.uint8:
                array = np.rint(255 * array).astype(np.uint8)
            shown.append((array, axes.get_title().replace("\n", " ")))
    return shown


def cells(axes):
    """Counts and percentages of a confusion matrix by true and predicted class."""
    counts, percentages = np.full((2, len(CLASSES), len(CLASSES)), NAN)
    for text in axes.texts:
        column, row = (round(place) for place in text.get_position())
        if text.get_text().endswith("%"):
            percentages[row, column] = float(text.get_text()[:-1])
        else:
            counts[row, column] = int(text.get_text())
    return counts, percentages


@pytest.fixture(autouse=True)
def nothing_is_registered_with_pyplot():
    plt.close("all")
    yield
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    "draw", cases(("typical", TYPICAL), ("of one", ONE_VALUE), ("with NaN", WITH_NAN))
)
def test_figure_with_data_renders_without_a_warning_under_a_title_with_its_source(draw):
    figure = drawn_and_rendered(draw)
    assert figure.axes and not {"no data", "nothing is misclassified"} & set(words(figure))
    assert SOURCE in figure.get_suptitle()
    assert_title_is_inside(figure)


@pytest.mark.parametrize("draw", cases(("without data", EMPTY)))
def test_figure_without_data_says_so_and_nothing_else(draw):
    figure = drawn_and_rendered(draw)
    assert set(words(figure)) - {figure.get_suptitle()} in (
        {"no data"},
        {"nothing is misclassified"},
    )
    assert figure.axes  # without any, a notebook shows no figure
    assert not any(axes.axison for axes in figure.axes)
    assert SOURCE in figure.get_suptitle()


@pytest.mark.parametrize("name", ["class_counts", "samples", "misclassified", "confusion_matrix"])
def test_class_names_with_dollars_are_no_formulas(monkeypatch, name):
    # As a formula the name would end in an error.
    monkeypatch.setitem(globals(), "CLASSES", ("$a_$",) * 9 + ("$5",))
    drawn_and_rendered(TYPICAL[name])


def test_perfect_predictions_are_not_called_missing_data():
    assert "nothing is misclassified" in words(draw_misclassified(10, np.eye(10), np.arange(10)))


def test_bars_carry_the_class_names_and_the_counts_with_an_absent_class_at_zero():
    expected = [5000, 1, 0, 12, 7, 3, 1234, 2, 9, 40]
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(10), expected))
    (axes,) = plot_class_counts(data_set(targets)).axes
    assert [bar.get_height() for bar in axes.patches] == expected
    assert [text.get_text() for text in axes.texts] == [f"{count:,}" for count in expected]
    bar_of_label = [round(bar.get_x() + bar.get_width() / 2) for bar in axes.patches]
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert [names[place] for place in bar_of_label] == list(CLASSES)


def test_samples_show_the_original_pixels_under_their_class_names():
    originals, labels = pixels(7), random_labels(7)
    originals[0], originals[1] = 0, 255  # where rounding leaves 0..1
    transform = get_test_aug_transform(CIFAR10_MEAN, CIFAR10_STD)
    images = np.stack([transform(image=image)["image"].numpy() for image in originals])
    shown = pictures(draw_samples(images, labels))
    np.testing.assert_array_equal([picture for picture, _ in shown], originals)
    assert [caption for _, caption in shown] == [CLASSES[label] for label in labels]


def test_samples_stay_within_the_range_that_can_be_shown():
    dark, bright = (picture for picture, _ in pictures(draw_samples(grey(-10, 10))))
    assert dark.max() == 0 and bright.min() == 255


def test_range_test_shows_every_loss_on_a_logarithmic_axis():
    lrs, losses = sweep(40)
    smoothed = [loss + 0.01 for loss in losses]
    (axes,) = draw_lr_finder(lrs, losses, smoothed).axes
    assert axes.get_xscale() == "log"
    curves = lines(axes)
    for name, values in (("loss", losses), ("smoothed loss", smoothed)):
        assert list(curves[name].get_xdata()) == lrs
        assert list(curves[name].get_ydata()) == values


def test_range_test_marks_exactly_the_chosen_rates_and_tells_the_rule():
    figure = draw_lr_finder(*sweep(40))
    (axes,) = figure.axes
    marks = lines(axes)
    assert set(marks["LRMAX"].get_xdata()) == {0.0123456}
    assert set(marks["LRMIN"].get_xdata()) == {0.000617}
    assert {"LRMAX = 0.0123", "LRMIN = 0.000617"} <= set(legend(axes))
    assert "half of it; see there" in [text.replace("\n", " ") for text in words(figure)]


def test_a_range_test_that_found_no_rate_shows_its_curve_and_the_reason():
    lrs, losses = sweep(40)
    found = LRFinding(lrs, losses, losses, None, None, "the loss does not fall")
    figure = plot_lr_finder(found, source=SOURCE)
    assert legend(figure.axes[0]) == ["loss", "smoothed loss"]
    assert "the loss does not fall" in words(figure)


def test_legend_of_the_range_test_lies_on_none_of_its_lines():
    figure = draw_lr_finder(*sweep(40))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    (rule,) = [text for text in figure.texts if "half of it" in text.get_text()]
    for other in (axes, axes.xaxis.label, *axes.get_xticklabels(), rule):
        box = axes.get_legend().get_window_extent()
        assert not box.overlaps(other.get_window_extent()), other
    assert 0 <= rule.get_window_extent().y0 < box.y0


def test_words_of_the_rates_lie_on_no_line():
    (axes,) = draw_lr_history(one_cycle_rates()).axes
    axes.figure.draw_without_rendering()
    line = axes.lines[0].get_xydata()
    fine = np.stack([np.interp(np.linspace(0, 95, 2000), line[:, 0], line[:, 1])], 1)
    places = axes.transData.transform(np.column_stack([np.linspace(0, 95, 2000), fine]))
    for word in axes.texts:
        assert word.get_window_extent().count_contains(places) == 0, word.get_text()


def test_diverging_end_does_not_flatten_the_curve_of_the_range_test():
    lrs, losses = sweep(40)
    (axes,) = draw_lr_finder(lrs, losses).axes
    low, high = axes.get_ylim()
    assert low < min(losses) and losses[0] < high < 5 < max(losses)
    assert axes.get_xlim()[0] < lrs[0] and lrs[-1] < axes.get_xlim()[1]


@pytest.mark.parametrize("quantity", ["accuracy", "loss"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_history_shows_exactly_the_records_values_and_the_last_in_the_legend(split, quantity):
    records = epoch_records(7)
    left, right = draw_history(records).axes
    axes = left if quantity == "accuracy" else right
    values = [getattr(record, f"{split}_{quantity}") for record in records]
    assert list(lines(axes)[split].get_xdata()) == [1, 2, 3, 4, 5, 6, 7]
    assert list(lines(axes)[split].get_ydata()) == values
    last = f"{100 * values[-1]:.2f}%" if quantity == "accuracy" else f"{values[-1]:.3f}"
    (entry,) = [text for text in legend(axes) if text.startswith(split)]
    assert entry.endswith(last)


@pytest.mark.parametrize(
    "count, ticks",
    [(1, [1]), (2, [1, 2]), (7, [*range(1, 8)]), (9, [1, 2, 4, 6, 8, 9]), (24, [1, 5, 10, 15, 20, 24]),
     (26, [1, 5, 10, 15, 20, 26]), (300, [1, 50, 100, 150, 200, 250, 300])],
)  # fmt: skip
def test_epochs_are_counted_from_1_to_the_last_in_whole_numbers(count, ticks):
    for axes in draw_history(epoch_records(count)).axes:
        assert axes.get_xticks().tolist() == ticks


def test_history_labels_accuracies_as_percentages_and_losses_as_they_are():
    left, right = draw_history(epoch_records(3)).axes
    left.figure.draw_without_rendering()
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert all(text.endswith("%") for text in labels) and len(set(labels)) == len(labels)
    assert "%" not in right.yaxis.get_major_formatter()(0.5)


def test_rate_of_every_step_is_drawn_with_first_peak_and_last_annotated():
    rates = one_cycle_rates()
    (axes,) = draw_lr_history(rates).axes
    curve = max(axes.get_lines(), key=lambda line: len(line.get_xdata()))
    assert list(curve.get_xdata()) == list(range(len(rates)))
    assert list(curve.get_ydata()) == rates
    notes = {text.get_text(): text.xy for text in axes.texts}
    assert notes == {
        "step 0: 0.0005": (0, rates[0]),
        "step 19: 0.01": (19, rates[19]),
        "step 95: 0.0007": (95, rates[95]),
    }


def test_rates_are_shown_over_steps_and_epochs():
    (axes,) = draw_lr_history(one_cycle_rates()).axes
    (epochs,) = axes.child_axes
    axes.figure.draw_without_rendering()
    assert epochs.get_xticks().tolist() == [0, 5, 10, 15, 20, 24]
    assert epochs.get_xlim() == pytest.approx([limit / 4 for limit in axes.get_xlim()])
    assert not plot_lr_history(step_records([0.1, 0.2]), source=SOURCE).axes[0].child_axes


def test_peak_of_the_rates_is_the_highest_number_even_with_a_nan_among_them():
    (axes,) = draw_lr_history([0.1, NAN, 0.3, 0.2]).axes
    notes = {text.get_text() for text in axes.texts}
    assert notes == {"step 0: 0.1", "step 2: 0.3", "step 3: 0.2"}


def test_misclassified_shows_only_wrong_images_the_most_confident_first():
    count = 60
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1).repeat(3, axis=3)
    labels, probabilities = random_labels(count), random_probabilities(count)
    labels[::3] = probabilities[::3].argmax(axis=1)  # a good third is right
    expected = []
    for index, (label, row) in enumerate(zip(labels.tolist(), probabilities.tolist())):
        predicted = row.index(max(row))
        if predicted != label:
            expected.append((max(row), index, CLASSES[label], CLASSES[predicted]))
    expected.sort(key=lambda entry: -entry[0])
    assert 10 < len(expected) < count - 10

    images = images.repeat(8, axis=1).repeat(8, axis=2)
    of = evaluation(labels, probabilities)
    figure = plot_misclassified(of, data_set(labels, images), count=8, columns=4)
    shown = pictures(figure)
    assert [picture.max() for picture, _ in shown] == [index for _, index, *_ in expected[:8]]
    for (_, caption), (confidence, _, true, predicted) in zip(shown, expected):
        assert re.fullmatch(rf"{true}\b.* {predicted} \({100 * confidence:.1f}%\)", caption)
    assert f"{len(expected)} of {count}" in figure.get_suptitle()


def test_misclassified_shows_all_wrong_images_where_they_are_fewer_than_count():
    probabilities = np.eye(10)[[1, 1, 2, 4]]
    shown = pictures(draw_misclassified(4, probabilities, np.array([0, 1, 3, 4]), count=20))
    assert [caption.split()[0].strip(",") for _, caption in shown] == ["airplane", "cat"]


def test_misclassified_says_most_confident_only_of_a_part_that_is_shown():
    labels, probabilities = np.array([0, 0, 0]), np.eye(10)[[1, 2, 0]]
    title = lambda count: draw_misclassified(3, probabilities, labels, count=count).get_suptitle()
    assert "Misclassified: 2 of 3\n" in title(2) and "confident" not in title(0)
    assert title(1) == f"Misclassified: 2 of 3, the most confident ones\n{SOURCE}"


def test_longest_class_names_and_title_have_room():
    labels, probabilities = np.array([0, 1] * 5000), np.eye(10)[[1, 0] * 5000]
    for figure in (
        plot_misclassified(
            evaluation(labels, probabilities),
            data_set(labels, np.zeros((10_000, 8, 8, 3), np.uint8)),
            count=5,
        ),  # fmt: skip
        draw_samples(grey(*range(10)), [1] * 10, columns=10),
    ):
        figure.draw_without_rendering()  # lays the axes out
        boxes = [axes.title.get_window_extent() for axes in figure.axes]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert 0 <= boxes[0].x0 and boxes[-1].x1 <= figure.bbox.width
        assert_title_is_inside(figure)


@pytest.fixture(scope="module")
def confusion():
    return draw_confusion_matrix(*confusing_labels())


def test_confusion_matrix_shows_the_counts_with_true_classes_as_rows(confusion):
    labels, predicted = confusing_labels()
    expected = confusion_matrix(labels, predicted, labels=list(range(10)))
    assert not expected[[5, 7]].any() and not expected[:, [3, 5]].any()
    np.testing.assert_array_equal(cells(*confusion.axes)[0], expected)


def test_confusion_matrix_shows_the_shares_of_each_true_class(confusion):
    labels, predicted = confusing_labels()
    counts, shares = cells(*confusion.axes)
    np.testing.assert_array_equal(np.isnan(shares), counts == 0)
    shares = np.nan_to_num(shares)
    sums = shares.sum(axis=1)
    assert sums[5] == sums[7] == 0
    np.testing.assert_allclose(np.delete(sums, (5, 7)), 100, atol=0.5)  # ten roundings to 0.1
    for row in (0, 2, 9):
        expected = 100 * np.bincount(predicted[labels == row], minlength=10) / (labels == row).sum()
        np.testing.assert_allclose(shares[row], expected, atol=0.051)


def test_confusion_matrix_names_rows_columns_and_accuracy(confusion):
    labels, predicted = confusing_labels()
    for axes in confusion.axes:
        assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
        for names in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert tuple(text.get_text() for text in names) == CLASSES
    trace = np.trace(confusion_matrix(labels, predicted, labels=list(range(10))))
    assert f"{100 * trace / 400:.2f}%" in confusion.get_suptitle()


def test_confusion_matrix_does_not_depend_on_the_order_of_samples(confusion):
    labels, predicted = confusing_labels()
    order = np.random.default_rng(4).permutation(len(labels))
    other = draw_confusion_matrix(labels[order], predicted[order])
    assert confusion.get_suptitle() == other.get_suptitle()
    for left, right in zip(confusion.axes, other.axes):
        np.testing.assert_array_equal(cells(left), cells(right))


def test_errors_of_a_confusion_matrix_can_be_seen_beside_a_nearly_full_diagonal():
    labels = np.repeat(np.arange(10), 1000)
    predicted = labels.copy()
    predicted[:20] = 3  # 2 % of the first class
    (axes,) = draw_confusion_matrix(labels, predicted).axes
    tints = np.asarray(axes.images[0].get_array())
    assert tints[0, 3, :3].min() < 0.6 and tints[0, 4, :3].min() == 1


def test_many_classes_and_long_names_do_not_run_into_each_other():
    classes = [f"class number {k}" for k in range(80)]
    labels = np.arange(800) % 80
    matrix = draw_confusion_matrix(labels, labels, classes)
    assert not matrix.axes[0].texts  # no number would be legible
    few = draw_confusion_matrix(labels % 30, labels % 30, classes[:30])
    names = ["West Highland white terrier", "a name that is far too long for any picture"]
    samples = plot_samples(np.zeros((10, 3, 32, 32)), [0, 1] * 5, data_set(classes=names))
    counts = plot_class_counts(data_set(labels, classes=classes))
    in_row = {
        "matrix": lambda: matrix.axes[0].get_yticklabels(),
        "numbers": lambda: [t for t in few.axes[0].texts if round(t.get_position()[1]) == 0],
        "captions": lambda: [axes.title for axes in samples.axes[:5]],
        "counts": lambda: counts.axes[0].get_xticklabels(),
    }
    for figure in (matrix, few, samples, counts):
        figure.draw_without_rendering()
    for name, labels_of in in_row.items():
        boxes = [label.get_window_extent() for label in labels_of()]
        assert len(boxes) > 1
        for one, other in pairwise(boxes):
            assert not one.overlaps(other), name


def test_long_class_names_leave_the_words_and_the_probability_of_an_error():
    names = ("West Highland white terrier", "soft-coated wheaten terrier")
    of = evaluate_predictions([[0.1, 0.9]], [0], names)
    (axes,) = plot_misclassified(of, data_set([0], classes=names)).axes
    assert axes.get_title() == "West Highland whi…, predicted as\nsoft-coated wheat… (90.0%)"
