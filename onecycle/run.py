"""One training from images to report. The rest of the package is parts; this puts them together."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from onecycle.data.dataset import Images
from onecycle.data.pictures import read_picture
from onecycle.errors import CheckpointError, DivergedError, RangeTestError, UsageError
from onecycle.modules import (
    check_maker,
    freeze_idle_biases,
    group_batch_norm,
    make,
    model_summary,
)
from onecycle.optim.lr_rule import LRFinding
from onecycle.recipe import Recipe, as_data, stored_recipe
from onecycle.records import History
from onecycle.results.evaluation import Evaluation, evaluate_predictions
from onecycle.results.figures.style import own_style
from onecycle.results.folder import own_folder
from onecycle.results.grad_cam import NO_LAYER, ErrorMaps, explain_errors
from onecycle.results.networks import CUSTOM_RESNET, find_model
from onecycle.results.origin import begin, one_line
from onecycle.results.pictures import Guess, predict_pictures
from onecycle.results.reading import read_results
from onecycle.run_figures import FIGURES
from onecycle.run_folder import (
    describe_images,
    describe_run,
    finished_results,
    identify,
    open_checkpoint,
    reopen,
    stored_average,
    write_folder,
)
from onecycle.run_given import (
    check_given,
    check_step_scheduler,
    given_pictures,
    names_of,
)
from onecycle.run_parts import (
    OPTIMIZERS,
    accuracy_of_average,
    log_accuracy,
    make_criterion,
    make_extras,
    make_loader,
    new_rates,
    one_cycle_of,
    set_peak,
)
from onecycle.run_start import (
    check_images,
    check_steps,
    fit_to_images,
    in_words,
    no_images,
    start_from_weights,
)
from onecycle.training.checkpoint import Checkpoint, discard
from onecycle.training.compute import Compute, set_seed, tune_process
from onecycle.training.group import Group
from onecycle.training.inference import predict
from onecycle.training.loop import fit
from onecycle.training.progress import TrainingLog, Watched
from onecycle.training.signals import catch_signals

MakeModel = Callable[[int], nn.Module]
MakeOptimizer = Callable[[nn.Module, Recipe], Optimizer]
MakeScheduler = Callable[[Optimizer, Recipe, LRFinding, int], LRScheduler | None]


class Run:
    """One training in one folder.

    Each step first makes what it needs from the steps before it, so ``Run(...).save()`` is a whole
    training. Each may be called again. A run that was stopped resumes, and a finished run is read
    from its folder, whether it was begun in a notebook, by a command or in a script.

    Args:
        folder: of the run; made when it is first needed.
        data: training images, and images to evaluate on.
        model: gives a network for a number of classes, such as a class; called after the seed is
            set. A network that is given as it is keeps its weights.
        recipe: every number of the training; what is None in it is chosen for the images.
        init: weights to start from: a file, "none", or "auto", which takes the published weights
            for your own pictures. If its classes are others, the last layer is new. The images are
            then normalised as those that it was trained on.
        optimizer: gives an optimizer for (model, recipe). None: the recipe's.
        criterion: loss of (output, labels), a module or a function: a mean over the batch. None:
            cross-entropy with the recipe's label smoothing.
        augment: gives a (3, H, W) float tensor for a (H, W, 3) uint8 image: a torchvision transform
            or an albumentations pipeline. None: the recipe's crop, flip and cut-out, on the device.
        workers: processes that load images for ``augment``.
        scheduler: gives a scheduler for (optimizer, recipe, finding, steps per epoch), or None for
            a constant learning rate; the optimizer has the learning rate LRMAX then. None: one cycle.
        step_scheduler: after every "batch" or every "epoch", see ``fit``.
        callbacks: objects with ``on_step(epoch, step, accuracy)`` or ``on_epoch(record)``.
        device: auto, cuda, mps or cpu.
        precision: auto, bfloat16, float16 or float32.
        compile: off, graph, fused, fused-graph, default or reduce-overhead.
        group: the processes that train together. None: this one alone.
        save_every_s: seconds between two checkpoints, 0 or more; 0: after each step.
        resume: auto, never, or the file of a checkpoint.
        name: of the run, in its report, results and log. None: the folder's name.
        author: who trains it, for the same places.

    Raises:
        UsageError: the arguments, or recipe and images, do not go together.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        data: Images,
        model: MakeModel | nn.Module,
        recipe: Recipe = Recipe(),  # noqa: B008 (it is frozen)
        *,
        init: str | os.PathLike = "auto",
        optimizer: MakeOptimizer | None = None,
        criterion: nn.Module | Callable | None = None,
        augment: Callable | None = None,
        workers: int = 0,
        scheduler: MakeScheduler | None = None,
        step_scheduler: Literal["batch", "epoch"] = "batch",
        callbacks: Sequence[Any] = (),
        device: str = "auto",
        precision: str = "auto",
        compile: str = "off",
        group: Group | None = None,
        save_every_s: float = 600.0,
        resume: str = "auto",
        name: str | None = None,
        author: str | None = None,
    ) -> None:
        self.folder, self.callbacks = Path(folder), list(callbacks)
        self.train, self.test = check_given(data, recipe)
        recipe, reasons = fit_to_images(recipe, self.train)
        self.recipe = recipe
        self.compute = Compute.choose(device, precision, compile, group)
        self.is_first = self.compute.group.rank == 0
        self.command, self.history, self.stopped_by = "", History(), None
        self.save_every_s, self.resume = save_every_s, resume
        self.augment, self.workers = augment, workers
        self._make_scheduler, self._scheduler = scheduler or one_cycle_of, None
        self.step_scheduler = step_scheduler
        check_maker("scheduler", self._make_scheduler, None, recipe, None, 1)
        check_step_scheduler(scheduler, step_scheduler)
        self._finding: LRFinding | None = None
        self.refused: LRFinding | None = None  # a range test's curve that says nothing
        self._evaluation: Evaluation | None = None
        self.stored_average: float | None = None  # accuracy, of a finished run that is read
        self._finished = False
        own = {"name": one_line(name or ""), "author": one_line(author or "")}
        self.origin = {key: value for key, value in own.items() if value}
        self.given = names_of(
            model=model, optimizer=optimizer, criterion=criterion, augment=augment,
            scheduler=scheduler, step_scheduler=None if step_scheduler == "batch" else step_scheduler,
        )  # fmt: skip
        tune_process()
        set_seed(recipe.seed)
        criterion = make_criterion(recipe, self.train, criterion)
        if isinstance(criterion, nn.Module):  # it may have weights of classes
            criterion = criterion.to(self.compute.device)
        self.criterion = criterion
        if not isinstance(model, nn.Module):
            model = make("model", model, len(self.train.classes))
        self.start = start_from_weights(model, init, self.train, recipe)
        if self.start is not None:
            reasons.append(in_words(self.start))
            if augment is None:  # else it normalises as it likes, and so must the test images
                self.train = self.train.with_stats(self.start.mean, self.start.std)
        self.notes = [*self.train.notes, *reasons]
        self.train_loader = self.loader(train=True, shared=True)
        self.test_loader = self.loader(train=False, shared=True)
        self.total_steps = check_steps(recipe.epochs * len(self.train_loader))
        self.model = self.compute.place_model(model)
        freeze_idle_biases(self.model)
        group_batch_norm(self.model, recipe.bn_groups)
        if optimizer is not None:
            self.optimizer = make("optimizer", optimizer, self.model, recipe)
        else:
            own = OPTIMIZERS[recipe.optimizer]
            self.optimizer = own(self.model, recipe, self.train, self.compute)
        self.extras = make_extras(recipe, self.model)
        stream = None if self.is_first else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.log = TrainingLog(
            len(self.train_loader), len(self.test), epochs=recipe.epochs,
            test_name=self.test.name.capitalize(), stream=stream,
        )  # fmt: skip

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        data: Images | None = None,
        model: MakeModel | None = None,
        **options: Any,
    ) -> Run:
        """A finished run from its folder, with its recipe and its trained weights.

        Args:
            folder: of the run.
            data: images of its classes; None: it can predict, and has no images to evaluate on.
            model: as it was given to the run; None: the network of the name that the run has.
            options: others that ``Run`` takes.

        Raises:
            CheckpointError: the folder holds no finished run, or another network's.
            UsageError: the network's name is not known here.
        """
        results = read_results(folder)
        if "history" not in results:
            raise CheckpointError(f"{folder} holds no finished run; name the folder of one")
        recipe, stored = stored_recipe(results["recipe"]), results["data"]
        train, test = no_images(stored, recipe) if data is None else check_given(data, recipe)
        data = train.with_stats(stored["mean"], stored["std"]), test
        model = model or find_model(stored.get("model") or CUSTOM_RESNET, folder)
        run = cls(folder, data, model, recipe, init="none", **options)
        run._reopen(results)
        return run

    # --- the steps ------------------------------------------------------------------------------

    def summary(self) -> str:
        """torchsummary's table of the network."""
        return model_summary(self.model, (3, self.train.size_px, self.train.size_px))

    def find_lr(self) -> LRFinding:
        """LRMAX and LRMIN: the recipe's, those of the run that is resumed, or a range test's.

        Raises:
            RangeTestError: the range test finds nothing; ``figure("lr_finder")`` shows its curve.
        """
        if self._finding is None and not self._read_finished():
            notes = self.checkpoint.notes
            if "rates" not in notes:
                self.origin = begin() | self.origin
                try:
                    notes["run"], notes["rates"] = self.origin, new_rates(self)
                except RangeTestError as error:
                    self.refused = error.finding
                    raise
            self.origin = notes.get("run", {}) | self.origin
            self._finding = LRFinding(**notes["rates"])
        return self._finding

    def fit(self) -> History:
        """Train by the recipe, from the beginning or from where the run was stopped.

        Ctrl-C, the notebook's stop button and SIGTERM save a checkpoint and end the training early:
        ``is_complete`` is False then, and ``fit()`` resumes.

        Returns:
            A record of each step and each epoch that is done.

        Raises:
            CheckpointError: the checkpoint in the folder is damaged or of another run.
            DivergedError: a loss or a gradient is not finite.
            StorageError: the folder holds another run, is in use, or cannot be written.
        """
        if self.is_complete or self._read_finished():
            return self.history
        finding = self.find_lr()
        if self._scheduler is None:
            set_peak(self.optimizer, self.recipe, finding.lr_max)
            self._scheduler = make(
                "scheduler",
                self._make_scheduler,
                self.optimizer,
                self.recipe,
                finding,
                len(self.train_loader),
            )
        set_seed(self.recipe.seed)  # whatever was drawn since; a checkpoint brings its own state
        listeners = [self.log, *self.callbacks] if self.is_first else []
        with (
            own_folder(self.folder, is_first=self.is_first) as warning,
            contextlib.closing(self.log),
            catch_signals() as signals,
        ):
            if warning:
                self.log.write(warning)
            try:
                self.history = fit(
                    self.model, self.train_loader, self.test_loader, self.optimizer,
                    self._scheduler, self.criterion, epochs=self.recipe.epochs,
                    step_scheduler=self.step_scheduler, compute=self.compute,
                    checkpoint=self.checkpoint, callbacks=listeners, stop=signals.stop,
                    **self.extras,
                )  # fmt: skip
            except DivergedError as error:
                last = self.checkpoint.last
                kept = f"the last good state is {last}" if last else "nothing was saved before"
                raise DivergedError(f"{error}; {kept}") from error
        if self.is_complete and self.extras["kept"]:
            self.extras["kept"].apply()
        if not self.is_complete:  # by a signal to any process of the group
            self.stopped_by = self.compute.group.most(signals.received or 0) or None
        return self.history

    def evaluate(self) -> Evaluation:
        """What the trained network makes of the images to evaluate on.

        Raises:
            UsageError: the training was stopped before its end.
        """
        self._train_to_the_end()
        check_images(self.test)
        if self._evaluation is None:
            # Mirror images mean the same only if they were trained on.
            mirrored = self.recipe.flip_probability > 0
            loader = self.test_loader
            if self.is_first:
                share = -(-len(self.test) // self.compute.group.world_size)
                loader = Watched(loader, "evaluating", share)
            found = predict(self.model, loader, compute=self.compute, mirrored=mirrored)
            self._evaluation = evaluate_predictions(
                found.probabilities, found.labels, self.test.classes,
                mirrored=found.mirrored, indices=self.test.indices,
                files=self.test.files, average_accuracy=accuracy_of_average(self),
            )  # fmt: skip
            log_accuracy(self, self._evaluation)
        return self._evaluation

    def predict(
        self, pictures: str | os.PathLike | Sequence[Any], top: int = 5
    ) -> list[list[Guess]]:
        """The most probable classes of each picture, the most probable first.

        Args:
            pictures: a folder, of which all pictures are taken in the order of their names; or a list
                of files, of pictures opened with Pillow, or of (S, S, 3) uint8 of the size that the
                network was trained on.
            top: classes per picture.

        Raises:
            DataError: a file is no picture, or is damaged; a folder has none.
            UsageError: one file is given, not several, or arrays of another form.
        """
        pictures = given_pictures(pictures)
        self._train_to_the_end()
        size, resize = self.train.size_px, self.recipe.resize
        read = [
            picture
            if isinstance(picture, np.ndarray)
            else read_picture(picture, size, resize=resize)
            for picture in pictures
        ]
        return predict_pictures(
            self.model, read, mean=self.train.mean, std=self.train.std,
            classes=self.train.classes, top=top,
        )  # fmt: skip

    def figure(self, name: str) -> Figure:
        """One of ``FIGURES`` by its name.

        Raises:
            UsageError: there is no figure of that name.
        """
        if name not in FIGURES:
            raise UsageError(f"there is no figure {name!r}; there are {', '.join(FIGURES)}")
        with own_style():
            return FIGURES[name](self)

    def figures(self) -> dict[str, Figure]:
        """All figures by name, without what there is nothing for: a range test, Grad-CAM's maps."""
        without = set() if self.find_lr().lrs else {"lr_finder"}
        if "grad_cam" in FIGURES and not self.error_maps.layer:
            without.add("grad_cam")
        return {name: self.figure(name) for name in FIGURES if name not in without}

    def save(self) -> Path:
        """Write the folder: report.html, results.json, tables, weights, log and figures.

        Returns:
            The folder. That of a finished run stays as it is.

        Raises:
            StorageError: something cannot be written.
            UsageError: the training was stopped before its end.
        """
        evaluation = self.evaluate()
        if not self.is_first or self._finished:
            return self.folder
        write_folder(self, evaluation)
        self._finished = True
        return self.folder

    # --- what the steps share -------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """All epochs are trained."""
        return len(self.history.epochs) == self.recipe.epochs

    def begun(self) -> History:
        """What was measured so far; the training begins if there is nothing."""
        return self.history if self.history.steps else self.fit()

    def _train_to_the_end(self) -> None:
        self.begun()
        if not self.is_complete:
            epoch = len(self.history.epochs) + 1
            raise UsageError(f"stopped in epoch {epoch} of {self.recipe.epochs}: call fit() again")

    @functools.cached_property
    def machine(self) -> dict[str, Any]:
        """What it is computed on, and with which versions."""
        return self.compute.describe()

    @functools.cached_property
    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """The first 20 training images at most, as the network sees them, and their labels."""
        check_images(self.train)
        images, labels = next(iter(self.loader(train=True, shared=False)))
        return images[:20].cpu().numpy(), labels[:20].cpu().numpy()

    @functools.cached_property
    def error_maps(self) -> ErrorMaps:
        """Where the network looked in its most confident errors; none where it cannot be told."""
        evaluation, size_px = self.evaluate(), self.test.size_px
        try:
            maps, why = explain_errors(self.model, self.test_loader.transform, evaluation), NO_LAYER
        except (UsageError, RuntimeError) as error:  # which must not cost a trained run its report
            maps, why = ErrorMaps.none(size_px), str(error).strip().split("\n")[0]
        if not maps.layer:
            self.log.write(f"without Grad-CAM: {why}")
        return maps

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """The images in plain data, for results, report and weights."""
        return describe_images(self)

    @property
    def about(self) -> dict[str, Any]:
        """What ``results.json`` begins with, in plain data."""
        rates = dataclasses.asdict(self.find_lr())
        return {
            "run": describe_run(self),
            "recipe": as_data(self.recipe),
            "data": self.data,
            "parts": self.given,
            "start": self.start and {"file": self.start.file.name, "sha256": self.start.sha256},
            "learning_rate": {name: value for name, value in rates.items() if value != []},
            "machine": self.machine,
        }

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers, in plain data: a run resumes only with the same."""
        return identify(self)

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """The state of the unfinished run in its folder; it is loaded if there is one."""
        return open_checkpoint(self)

    def _read_finished(self) -> bool:
        """Whether this run is finished in its folder, from which it is read then."""
        if self.history.steps or self._finished:
            return self._finished
        if results := finished_results(self):
            self._reopen(results)
            if self.is_first:
                discard(self.folder)  # what a process left that was killed after its results
            epochs = self.recipe.epochs
            self.log.show(f"already complete ({epochs} of {epochs} epochs): {self.folder}")
        return self._finished

    def _reopen(self, results: dict[str, Any]) -> None:
        self.history, self._finding, self.log.lines = reopen(self.folder, results, self.model)
        self.extras["kept"] = None  # they were not trained here
        self.stored_average = stored_average(self, results)
        self.origin = results.get("run", {}) | self.origin
        self._finished = True

    def loader(self, *, train: bool, shared: bool) -> Any:
        """Batches of this process, or of all processes together."""
        return make_loader(
            (self.train, self.test), self.recipe, self.compute, train=train, shared=shared,
            augment=self.augment, workers=self.workers,
        )  # fmt: skip
