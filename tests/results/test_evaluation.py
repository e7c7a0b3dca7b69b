import csv
import io
import json

import numpy as np
import pytest

from onecycle.errors import UsageError
from onecycle.results.evaluation import evaluate_predictions

CLASSES = ("cat", "dog", "ship", "owl")
# Six images; "owl" is neither true nor predicted, "ship" is predicted once and never right.
LABELS = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [
        [0.70, 0.10, 0.10, 0.10],
        [0.20, 0.60, 0.10, 0.10],  # cat predicted as dog, at 60%
        [0.05, 0.05, 0.90, 0.00],  # cat predicted as ship, at 90%
        [0.10, 0.80, 0.05, 0.05],
        [0.60, 0.30, 0.05, 0.05],  # dog predicted as cat, at 60%
        [0.25, 0.50, 0.25, 0.00],  # ship predicted as dog, at 50%
    ],
    np.float32,
)


@pytest.fixture
def evaluation():
    return evaluate_predictions(PROBABILITIES, LABELS, CLASSES)


def perfect(count=5):
    labels = np.arange(count) % len(CLASSES)
    return evaluate_predictions(np.eye(len(CLASSES))[labels], labels, CLASSES)


def test_accuracy_and_loss_are_those_of_the_images(evaluation):
    assert evaluation.accuracy == pytest.approx(2 / 6)
    own = [0.70, 0.20, 0.05, 0.80, 0.30, 0.25]
    assert evaluation.loss == pytest.approx(-np.log(own).mean(), abs=1e-6)


def test_probability_of_zero_for_the_true_class_is_a_large_loss_and_not_an_endless_one():
    evaluation = evaluate_predictions(np.array([[1.0, 0.0], [1.0, 0.0]]), [0, 1], ("a", "b"))
    assert 40 < evaluation.loss < 50
    json.dumps(evaluation.summary(), allow_nan=False)


def test_scores_of_a_class_are_the_counted_ones_and_undefined_ones_are_none(evaluation):
    cat, dog, ship, owl = evaluation.scores
    assert (cat.precision, cat.recall, cat.support) == (1 / 2, pytest.approx(1 / 3), 3)
    assert cat.f1 == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert (dog.precision, dog.recall, dog.support) == (pytest.approx(1 / 3), 1 / 2, 2)
    assert (ship.precision, ship.recall, ship.f1) == (0, 0, 0)
    assert (owl.name, owl.precision, owl.recall, owl.f1, owl.support) == (
        "owl",
        None,
        None,
        None,
        0,
    )


def test_confusion_has_true_classes_as_rows_and_absent_ones_too(evaluation):
    assert evaluation.confusion.tolist() == [
        [1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0],
    ]  # fmt: skip


def test_confused_pairs_count_both_directions_and_the_most_frequent_is_first():
    labels = np.array([0] * 5 + [1] * 5 + [2] * 3)
    predicted = np.array([0, 0, 1, 2, 2, 0, 0, 0, 1, 1, 0, 0, 0])
    evaluation = evaluate_predictions(np.eye(4)[predicted], labels, CLASSES)
    found = [
        (p.first, p.second, p.first_as_second, p.second_as_first, p.count)
        for p in evaluation.confused_pairs
    ]
    assert found == [(2, 0, 3, 2, 5), (1, 0, 3, 1, 4)]


def test_wrong_images_are_the_most_confident_first_and_equal_ones_in_their_order(evaluation):
    assert evaluation.wrong.tolist() == [2, 1, 4, 5]


def test_calibration_bins_hold_every_image_once_with_its_confidence_and_accuracy(evaluation):
    bins = evaluation.bins
    assert (bins[0].low, bins[-1].high, len(bins)) == (0, 1, 15)
    assert all(a.high == b.low for a, b in zip(bins, bins[1:]))
    filled = {i: (b.count, b.accuracy) for i, b in enumerate(bins) if b.count}
    # As float32, 0.6 and 0.8 lie just above the edges 9/15 and 12/15.
    assert filled == {7: (1, 0), 9: (2, 0), 10: (1, 1), 12: (1, 1), 13: (1, 0)}
    assert bins[9].confidence == pytest.approx(0.6) and bins[8].accuracy is None


def test_calibration_error_by_hand():
    # Ten images at 0.95, of which seven are right; ten at 0.55, of which six are.
    confidence = np.array([0.95] * 10 + [0.55] * 10)
    labels = np.array([0] * 7 + [1] * 3 + [0] * 6 + [1] * 4)
    evaluation = evaluate_predictions(np.stack([confidence, 1 - confidence], 1), labels, ("a", "b"))
    assert evaluation.calibration_error == pytest.approx((0.25 * 10 + 0.05 * 10) / 20)


@pytest.mark.parametrize("confidence", [1.0, 1 + 1e-7, 14 / 15, 0.5])
def test_confidence_at_an_edge_falls_into_one_bin(confidence):
    rest = max(0.0, 1 - confidence)
    evaluation = evaluate_predictions(np.array([[confidence, rest]]), [0], ("a", "b"))
    (filled,) = [b for b in evaluation.bins if b.count]
    assert filled.count == 1 and filled.low < confidence <= filled.high + 1e-6


def test_error_table_has_all_errors_in_the_order_of_the_images(evaluation):
    text = io.StringIO()
    csv.writer(text).writerows(evaluation.error_rows())
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert [tuple(row.values()) for row in rows] == [
        ("1", "cat", "dog", "0.2", "0.6"),
        ("2", "cat", "ship", "0.05", "0.9"),
        ("4", "dog", "cat", "0.3", "0.6"),
        ("5", "ship", "dog", "0.25", "0.5"),
    ]
    assert list(rows[0]) == [
        "index", "true", "predicted", "probability_true", "probability_predicted",
    ]  # fmt: skip


def test_probabilities_of_the_table_are_the_measured_ones_to_the_bit():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), 50).astype(np.float32)
    evaluation = evaluate_predictions(probabilities, np.zeros(50, int), CLASSES)
    for index, _, predicted, own, other in evaluation.error_rows()[1:]:
        assert np.float32(own) == probabilities[index, 0]
        assert np.float32(other) == probabilities[index, CLASSES.index(predicted)]


def test_nothing_misclassified_gives_empty_tables_and_no_pairs():
    evaluation = perfect()
    assert (evaluation.accuracy, evaluation.loss, evaluation.calibration_error) == (1, 0, 0)
    assert len(evaluation.wrong) == 0 and evaluation.confused_pairs == ()
    assert len(evaluation.error_rows()) == 1
    assert [score.recall for score in evaluation.scores] == [1, 1, 1, 1]


def test_one_image_is_enough():
    assert perfect(1).summary()["images"] == 1


def test_summary_is_plain_data_and_tells_the_class_table_and_the_calibration(evaluation):
    summary = evaluation.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["images"], summary["errors"]) == (6, 4)
    assert [row["name"] for row in summary["classes"]] == list(CLASSES)
    assert sum(bin_["count"] for bin_ in summary["calibration"]["bins"]) == 6
    assert summary["confused_pairs"][0]["first"] == "cat"
    assert summary["mirrored_accuracy"] is None


def test_class_table_has_one_row_per_class(evaluation):
    header, *rows = evaluation.class_rows()
    assert header == ["class", "precision", "recall", "f1", "images"]
    assert [row[0] for row in rows] == list(CLASSES) and [row[-1] for row in rows] == [3, 2, 1, 0]


def test_mirrored_images_are_an_extra_figure_and_change_no_other(evaluation):
    mirrored = np.eye(4)[LABELS]
    mirrored[0] = [0, 1, 0, 0]
    with_them = evaluate_predictions(PROBABILITIES, LABELS, CLASSES, mirrored=mirrored)
    assert with_them.mirrored_accuracy == pytest.approx(5 / 6)
    assert with_them.summary() | {"mirrored_accuracy": None} == evaluation.summary()


def test_same_input_gives_the_same_result_and_keeps_its_arrays():
    before = PROBABILITIES.copy(), LABELS.copy()
    first, second = (evaluate_predictions(PROBABILITIES, LABELS, CLASSES) for _ in range(2))
    assert first.summary() == second.summary() and first.error_rows() == second.error_rows()
    assert (before[0] == PROBABILITIES).all() and (before[1] == LABELS).all()


@pytest.mark.parametrize(
    "probabilities, labels, found",
    [
        (np.zeros((0, 4)), [], r"\(0, 4\)"),
        (np.full((2, 3), 1 / 3), [0, 1], r"\(2, 3\).*4 class names"),
        (np.full((2, 4), 1 / 4), [0], r"\(1,\)"),
        (np.full((2, 4), 1 / 4), [0, 4], "image 1 has label 4"),
        (np.full((2, 4), 1 / 4), [-1, 0], "image 0 has label -1"),
        ([[0.25] * 4, [np.nan] * 4], [0, 1], "image 1 sum to nan"),
        ([[0.25] * 4, [-2.0, 1.0, 2.0, 3.0]], [0, 1], "image 1"),
        ([[0.5, 0.5, 0, 0], [-1.0, 1, 1, 0]], [0, 1], "image 1"),
    ],
)
def test_what_is_no_evaluation_is_refused_in_one_line(probabilities, labels, found):
    with pytest.raises(UsageError, match=found) as caught:
        evaluate_predictions(np.array(probabilities), labels, CLASSES)
    assert (
        "\n" not in str(caught.value) and "must" in str(caught.value) or "0..3" in str(caught.value)
    )


def test_errors_of_a_part_are_named_by_their_place_in_the_whole():
    probabilities = np.tile([0.8, 0.2], (4, 1))
    indices = np.array([40, 7, 31, 2])
    found = evaluate_predictions(probabilities, [1, 0, 1, 1], ("a", "b"), indices=indices)
    assert [row[0] for row in found.error_rows()[1:]] == [2, 31, 40]
