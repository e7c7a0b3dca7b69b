"""What one pass over the test images tells: every table and figure comes from this one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import (
    confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from onecycle.errors import UsageError
from onecycle.results.calibration import CalibrationBin, calibrate, coarser

ERROR_COLUMNS = ("index", "true", "predicted", "probability_true", "probability_predicted")


@dataclass(frozen=True, slots=True)
class ClassScore:
    """The scores of one class. A share of no images is None."""

    name: str
    precision: float | None
    """The share of the images predicted as this class that belong to it, 0..1."""
    recall: float | None
    """The share of its images that are predicted as it, 0..1: the accuracy of the class."""
    f1: float | None
    """The harmonic mean of the two, 0..1."""
    support: int
    """Its images."""


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Two classes that are predicted as one another."""

    first: int
    """Class index: the one of the two that is predicted as the other more often."""
    second: int
    """Class index."""
    first_as_second: int
    """Images of the first that are predicted as the second."""
    second_as_first: int
    """Images of the second that are predicted as the first."""

    @property
    def count(self) -> int:
        """Errors between the two, in both directions."""
        return self.first_as_second + self.second_as_first


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a network made of N images of K classes; :func:`evaluate_predictions` makes it."""

    classes: tuple[str, ...]
    probabilities: np.ndarray
    """(N, K), rows sum to 1."""
    labels: np.ndarray
    """(N,) int64 true classes."""
    predicted: np.ndarray
    """(N,) int64 most probable classes."""
    accuracy: float
    """0..1."""
    loss: float
    """Mean cross-entropy per image, in nats."""
    scores: tuple[ClassScore, ...]
    """One per class, in their order."""
    confusion: np.ndarray
    """(K, K) int64 images: true classes are rows, predicted ones columns."""
    confused_pairs: tuple[ConfusedPair, ...]
    """All pairs with an error between them, the most confused first."""
    wrong: np.ndarray
    """(M,) int64 indices of the misclassified images, the most confident first."""
    bins: tuple[CalibrationBin, ...]
    """Of equal width from 0 to 1."""
    calibration_error: float
    """Expected calibration error, 0..1: how far confidence and accuracy of a bin lie apart."""
    indices: np.ndarray
    """(N,) int64: where each image is in its data set, which names it in tables and pages."""
    files: tuple[str, ...] | None = None
    """The N names of the images' files; None where they come from none."""
    mirrored_accuracy: float | None = None
    """0..1, with the probabilities that mirroring gave; None where they were not measured."""
    average_accuracy: float | None = None
    """0..1, with the average of the weights; None where it was not measured beside the others."""

    @property
    def class_averages(self) -> tuple[ClassScore, ...]:
        """Over the classes, each counted alike (macro) or by its images (weighted)."""
        kinds = ("macro", "weighted")
        return tuple(_average(self.labels, self.predicted, self.classes, kind) for kind in kinds)

    @property
    def top5_accuracy(self) -> float | None:
        """Share of images whose true class is among the five most probable, 0..1.

        None with 5 classes or fewer, of which it says nothing.
        """
        number = len(self.classes)
        if number <= 5:
            return None
        return float(
            top_k_accuracy_score(self.labels, self.probabilities, k=5, labels=range(number))
        )

    @property
    def shown_bins(self) -> tuple[CalibrationBin, ...]:
        """``bins``, but three joined to one if there are too few images for so many."""
        return coarser(self.bins)

    def summary(self) -> dict[str, Any]:
        """Everything but what is told image by image, as plain data for a results file."""
        return {
            "images": len(self.labels),
            "errors": len(self.wrong),
            "accuracy": self.accuracy,
            "mirrored_accuracy": self.mirrored_accuracy,
            "average_accuracy": self.average_accuracy,
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
            "class_averages": [asdict(score) for score in self.class_averages],
            "classes": [asdict(score) for score in self.scores],
            "confusion": self.confusion.tolist(),
            "confused_pairs": [
                asdict(pair)
                | {"first": self.classes[pair.first], "second": self.classes[pair.second]}
                for pair in self.confused_pairs
            ],
            "calibration": {
                "error": self.calibration_error,
                "bins": [asdict(bin_) for bin_ in self.bins],
            },
        }

    def error_rows(self) -> list[list[Any]]:
        """A table of all errors in the order of the data set; the first row names the columns."""
        rows = [
            [
                int(self.indices[i]),
                self.classes[self.labels[i]],
                self.classes[self.predicted[i]],
                _short(self.probabilities[i, self.labels[i]]),
                _short(self.probabilities[i, self.predicted[i]]),
                *([self.files[i]] if self.files else []),
            ]
            for i in sorted(self.wrong, key=self.indices.__getitem__)
        ]
        return [[*ERROR_COLUMNS, *(["file"] if self.files else [])], *rows]

    def class_rows(self) -> list[list[Any]]:
        """A table of the classes; the first row names the columns, an empty cell is undefined."""
        columns = ("class", "precision", "recall", "f1", "images")
        rows = [[s.name, s.precision, s.recall, s.f1, s.support] for s in self.scores]
        return [list(columns), *rows]


def evaluate_predictions(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    mirrored: np.ndarray | None = None,
    indices: np.ndarray | None = None,
    files: Sequence[str] | None = None,
    average_accuracy: float | None = None,
) -> Evaluation:
    """Every figure that follows from probabilities and labels.

    Args:
        probabilities: (N, K), rows sum to 1.
        labels: (N,) true classes, 0..K-1.
        classes: the K class names.
        mirrored: (N, K) probabilities averaged over each image and its mirror image (flip TTA), or
            of the mirror images alone: for an extra accuracy and nothing else.
        indices: (N,) where each image is in its data set, if it is a part of one; None: 0..N-1.
        files: the N names of the images' files, which the table of errors has then.
        average_accuracy: 0..1, of the average of the weights, if it was measured.

    Raises:
        UsageError: there is no image, the shapes do not go together, a label is out of range, or
            a row is no probability distribution.

    Source:
        Calibration: Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    labels, classes = np.asarray(labels, dtype=np.int64), tuple(classes)
    probabilities = _checked(probabilities, labels, classes)
    predicted = probabilities.argmax(axis=1)
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    confusion = confusion_matrix(labels, predicted, labels=range(len(classes)))
    bins = calibrate(confidence.astype(np.float64), predicted == labels)
    gaps = [b.count * abs(b.accuracy - b.confidence) for b in bins if b.count]
    if mirrored is not None:
        mirrored = _checked(mirrored, labels, classes)
    return Evaluation(
        classes=classes,
        probabilities=probabilities,
        labels=labels,
        predicted=predicted,
        accuracy=float((predicted == labels).mean()),
        # A probability that was too small for float32 is not an endless loss.
        loss=float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean()),
        scores=_class_scores(labels, predicted, classes),
        confusion=confusion,
        confused_pairs=_confused_pairs(confusion),
        wrong=wrong[np.argsort(-confidence[wrong], kind="stable")],
        bins=bins,
        calibration_error=float(sum(gaps) / len(labels)),
        indices=np.arange(len(labels)) if indices is None else np.asarray(indices),
        files=None if files is None else tuple(files),
        mirrored_accuracy=(
            None if mirrored is None else float((mirrored.argmax(axis=1) == labels).mean())
        ),
        average_accuracy=average_accuracy,
    )


def _checked(probabilities: np.ndarray, labels: np.ndarray, classes: tuple) -> np.ndarray:
    probabilities = np.asarray(probabilities)
    if not len(labels) or labels.ndim != 1 or probabilities.shape != (len(labels), len(classes)):
        raise UsageError(
            f"found probabilities of shape {probabilities.shape}, labels of shape {labels.shape} "
            f"and {len(classes)} class names; they must be (N, K), (N,) and K, N at least 1"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(outside):
        raise UsageError(
            f"image {outside[0]} has label {labels[outside[0]]}; labels are 0..{len(classes) - 1}"
        )
    sums = probabilities.sum(axis=1, dtype=np.float64)
    off = np.flatnonzero(~((np.abs(sums - 1) < 1e-2) & (probabilities >= 0).all(axis=1)))  # or NaN
    if len(off):
        raise UsageError(
            f"the probabilities of image {off[0]} sum to {sums[off[0]]:.4g}; every row must hold "
            "numbers of 0 or more that sum to 1"
        )
    return probabilities


def _class_scores(
    labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...]
) -> tuple[ClassScore, ...]:
    table = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=np.nan
    )
    return tuple(
        ClassScore(name, _number(precision), _number(recall), _number(f1), int(support))
        for name, precision, recall, f1, support in zip(classes, *table)
    )


def _average(
    labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...], kind: str
) -> ClassScore:
    *scores, _ = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), average=kind, zero_division=np.nan
    )
    return ClassScore(f"{kind} average", *map(_number, scores), len(labels))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _confused_pairs(confusion: np.ndarray) -> tuple[ConfusedPair, ...]:
    pairs = []
    for i, k in zip(*np.triu_indices(len(confusion), 1)):
        first, second = (i, k) if confusion[i, k] >= confusion[k, i] else (k, i)
        counts = int(confusion[first, second]), int(confusion[second, first])
        if sum(counts):
            pairs.append(ConfusedPair(int(first), int(second), *counts))
    return tuple(sorted(pairs, key=lambda pair: -pair.count))  # stable: in the order of classes


def _short(value: np.floating) -> float:
    """The same number with no more digits than its type holds."""
    return float(str(value))
