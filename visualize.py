"""The figures, from the package ``onecycle``; each function returns a matplotlib Figure.

plot_class_counts: images per class.
plot_samples: images as the network sees them.
plot_lr_finder: the learning-rate range test.
plot_history: accuracy and loss by epoch.
plot_lr_history: learning rate of each step.
plot_misclassified: the most confident errors.
plot_confusion_matrix: true against predicted classes.
plot_confused_pairs: pairs of classes most often predicted as one another.
plot_reliability: accuracy against confidence.
plot_grad_cam: where the network looked.
plot_predictions: predictions for your own pictures.
"""

from onecycle.results.figures.confusion import plot_confused_pairs, plot_confusion_matrix
from onecycle.results.figures.errors import (
    plot_grad_cam,
    plot_misclassified,
    plot_predictions,
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
    "plot_history", "plot_lr_finder", "plot_lr_history", "plot_misclassified", "plot_predictions",
    "plot_reliability", "plot_samples",
]  # fmt: skip
