"""Figures of the package ``onecycle``, under one name."""

from onecycle.results.figures.errors import (
    plot_confused_pairs,
    plot_confusion_matrix,
    plot_grad_cam,
    plot_misclassified,
    plot_reliability,
)
from onecycle.results.figures.training import (
    plot_class_counts,
    plot_history,
    plot_lr_finder,
    plot_lr_history,
    plot_samples,
)

__all__ = [
    "plot_class_counts", "plot_confused_pairs", "plot_confusion_matrix", "plot_grad_cam",
    "plot_history", "plot_lr_finder", "plot_lr_history", "plot_misclassified", "plot_reliability",
    "plot_samples",
]  # fmt: skip
