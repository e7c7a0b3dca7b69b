"""The figures, from the package ``onecycle``; each function returns a matplotlib Figure."""

from onecycle.results.figures.errors import plot_confused_pairs  # classes predicted as one another
from onecycle.results.figures.errors import plot_confusion_matrix  # true against predicted classes
from onecycle.results.figures.errors import plot_grad_cam  # where the network looked
from onecycle.results.figures.errors import plot_misclassified  # the most confident errors
from onecycle.results.figures.errors import plot_predictions  # guesses of own pictures
from onecycle.results.figures.errors import plot_reliability  # accuracy against confidence
from onecycle.results.figures.training import plot_class_counts  # images per class
from onecycle.results.figures.training import plot_history  # accuracy and loss by epoch
from onecycle.results.figures.training import plot_lr_finder  # the range test
from onecycle.results.figures.training import plot_lr_history  # learning rate of each step
from onecycle.results.figures.training import plot_samples  # images as the network sees them

__all__ = [
    "plot_class_counts", "plot_confused_pairs", "plot_confusion_matrix", "plot_grad_cam",
    "plot_history", "plot_lr_finder", "plot_lr_history", "plot_misclassified", "plot_predictions",
    "plot_reliability", "plot_samples",
]  # fmt: skip
