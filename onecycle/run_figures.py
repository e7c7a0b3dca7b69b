"""The figures of a run, each by its name: the one place to add another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from onecycle.recipe import as_data
from onecycle.results.figures import confusion, errors, training

if TYPE_CHECKING:
    from onecycle.run import Run

FIGURES: dict[str, Callable[[Run], Figure]] = {
    "class_counts": lambda run: training.plot_class_counts(run.train),
    "samples": lambda run: training.plot_samples(
        *run.samples,
        of=run.train,
        note=training.samples_note(as_data(run.recipe), run.data["augmentation"]),
    ),
    "lr_finder": lambda run: training.plot_lr_finder(
        run.refused or run.find_lr(), source=run.train.source
    ),
    "history": lambda run: training.plot_history(run.begun(), source=run.train.source),
    "lr_history": lambda run: training.plot_lr_history(
        run.begun(), source=run.train.source, steps_per_epoch=len(run.train_loader)
    ),
    "misclassified": lambda run: errors.plot_misclassified(run.evaluate(), run.test),
    "confusion_matrix": lambda run: confusion.plot_confusion_matrix(
        run.evaluate(), source=run.test.source
    ),
    "confused_pairs": lambda run: confusion.plot_confused_pairs(
        run.evaluate(), source=run.test.source
    ),
    "reliability": lambda run: errors.plot_reliability(run.evaluate(), source=run.test.source),
    "grad_cam": lambda run: errors.plot_grad_cam(run.evaluate(), run.test, run.error_maps),
}
