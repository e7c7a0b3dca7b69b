"""What a run is made of when nothing else is given: loaders, optimizers, learning rates, schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from onecycle.checks import check_classes
from onecycle.data.batches import get_test_batch_transform, get_train_batch_transform
from onecycle.data.dataset import ImageDataset, Images
from onecycle.data.folder import NAMES
from onecycle.data.loaders import ResidentLoader, SeededLoader, fits_device, get_loader
from onecycle.data.mixing import Mixing
from onecycle.errors import RangeTestError, UsageError
from onecycle.modules import scale_head
from onecycle.optim.adam import get_optimizer
from onecycle.optim.lr_finder import find_lr, usual_rates
from onecycle.optim.lr_rule import LRFinding
from onecycle.optim.muon import get_speedrun_optimizer, prepare_network, whiten_network
from onecycle.optim.schedule import one_cycle
from onecycle.recipe import Recipe
from onecycle.results.evaluation import Evaluation
from onecycle.results.folder import own_folder
from onecycle.results.report.words import kept_words
from onecycle.run_folder import describe_run
from onecycle.run_given import check_criterion
from onecycle.run_start import START_LR
from onecycle.training.averaging import KeptWeights
from onecycle.training.compute import Compute
from onecycle.training.criterion import WeightedCrossEntropy
from onecycle.training.inference import evaluate
from onecycle.training.progress import progress_bar
from onecycle.training.sharpness import Sharpness

if TYPE_CHECKING:
    from onecycle.run import Run


def make_loader(
    data: Images,
    recipe: Recipe,
    compute: Compute,
    *,
    train: bool,
    shared: bool,
    augment: Callable | None = None,
    workers: int = 0,
) -> ResidentLoader | SeededLoader:
    """Batches of a run.

    Args:
        data: training images, and images to evaluate on.
        recipe: of the run.
        compute: device and processes.
        train: augmented training images, or normalised images to evaluate on.
        shared: dealt out to the processes of the group, or whole batches for one of them.
        augment: see ``Run``; None: the recipe's, of whole batches on the device.
        workers: processes that load images for ``augment``.
    """
    images, like = data[0] if train else data[1], data[0]
    group, device = compute.group, compute.device
    options = {"train": train, "seed": recipe.seed, "device": device}
    if shared:
        options |= {"rank": group.rank, "world_size": group.world_size}
    if train and augment is not None:
        images = images.with_transform(augment)
        return get_loader(images, recipe.batch_size, num_workers=workers, **options)
    # Twice: the padded images are half as large again.
    resident = fits_device(2 * sum(part.data.nbytes for part in data), device)
    normal = {"mu": like.mean, "sigma": like.std, "device": device, "resident": resident}
    if train:
        fields = ("flip_probability", "alternating_flip", "cutout_size_px", "padding", "seed")
        fields = {name: getattr(recipe, name) for name in fields}
        transform = get_train_batch_transform(images.data, **normal, **fields)
    else:
        transform = get_test_batch_transform(images.data, **normal)
    return ResidentLoader(transform, images.targets, recipe.batch_size, **options)


def make_criterion(recipe: Recipe, train: ImageDataset, given: Any) -> nn.Module | Callable:
    """The loss to minimise: the one that is given, or the recipe's.

    Raises:
        UsageError: what is given is no loss, or it is one, and the recipe has weights of classes for its own.
    """
    if given is not None and recipe.class_weights != "none":
        raise UsageError(
            f"class_weights is {recipe.class_weights} and a criterion is given; "
            "give it the weights, and set class_weights to none"
        )
    if given is not None:
        return check_criterion(given)
    if recipe.class_weights == "none":
        return nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    return WeightedCrossEntropy(
        train.targets, len(train.classes), label_smoothing=recipe.label_smoothing
    )


def make_extras(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """What ``fit`` takes beyond a plain training, by its names; None and 0 where it is off."""
    mixes, follows = recipe.mixup or recipe.cutmix, recipe.average_steps or recipe.keep == "best"
    keeping = {"keep": recipe.keep, "average_steps": recipe.average_steps}
    return {
        "clip_norm": recipe.clip_norm,
        "mixing": Mixing(recipe.mixup, recipe.cutmix, recipe.seed) if mixes else None,
        "kept": KeptWeights(model, **keeping) if follows else None,
        "sharpness": Sharpness(recipe.sharpness, recipe.sharpness_from)
        if recipe.sharpness
        else None,
    }


def _adam(
    model: nn.Module, recipe: Recipe, train: ImageDataset, compute: Compute
) -> torch.optim.Optimizer:
    if recipe.start == "whitened":
        whiten_network(model, train.data, train.mean, train.std)
    if recipe.head_rate != 1:
        scale_head(model, recipe.head_rate)
    shares = ("weight_decay", "body_rate", "head_rate", "vector_rate", "vector_decay")
    return get_optimizer(
        model,
        lr=recipe.finder_start_lr,
        betas=(recipe.beta1, recipe.beta2),
        **{name: getattr(recipe, name) for name in shares},
    )


def _muon(
    model: nn.Module, recipe: Recipe, train: ImageDataset, compute: Compute
) -> torch.optim.Optimizer:
    prepare_network(model, train.data, train.mean, train.std)
    return get_speedrun_optimizer(
        model,
        lr=recipe.finder_start_lr,
        betas=(recipe.beta1, recipe.beta2),
        compiled=compute.torch_compile_mode is not None,
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": _adam, "muon": _muon}
"""The recipe's optimizers; each may prepare the network, in place."""


def set_peak(optimizer: torch.optim.Optimizer, recipe: Recipe, lr_max: float) -> None:
    """Tell an optimizer of LRMAX: its rate, for a schedule that scales it, and a decay by steps."""
    for group in optimizer.param_groups:
        group["lr"] = lr_max
        if recipe.decay_per_step is not None:  # what a group has is a share of the recipe's
            group["weight_decay"] *= recipe.decay_per_step / (lr_max * recipe.weight_decay)


USUAL_RATIO = 200.0
"""LRMAX / LRMIN where neither is found."""


def new_rates(run: Run) -> dict[str, Any]:
    """LRMAX and LRMIN of a new run, the same for all processes, in plain data and in the log.

    Raises:
        UsageError: the network does not go with the images; or the best epoch is to be kept, and
            test images would choose it.
    """
    first = torch.zeros(1, dtype=torch.int64, device=run.compute.device)
    image = run.test_loader.transform(first, 0)
    check_classes(run.model, image, run.train.classes, run.compute.autocast())
    if run.recipe.keep == "best" and run.test.name not in (NAMES["val"], NAMES["whole"]):
        raise UsageError(
            f"keep is best and the images to evaluate on are {run.test.name}; hold training images "
            "out (--val N, or hold_out in Python), or keep last or average"
        )
    machine, write = run.machine, run.log.write
    counts = f"{len(run.train):,} training images, {len(run.test):,} {run.test.name}"
    write(f"{run.train.source}: {counts}")
    write(f"{machine['device_name']}, {machine['precision']}, {machine['threads']} threads")
    about = describe_run(run)
    author = f" by {about['author']}" if about["author"] else ""
    write(
        f"{about['name']}{author}, begun {about['date']}, {about['parameters']:,} parameters, "
        f"code {about['commit']}"
    )
    for line in run.notes:
        write(line)
    with own_folder(run.folder, is_first=run.is_first):
        found = dataclasses.asdict(_find_rates(run)) if run.is_first else None
        found = run.compute.group.same(found)
    write(f"LRMAX = {found['lr_max']:.6g}, LRMIN = {found['lr_min']:.6g}: {found['rule']}")
    write()
    return found


def _find_rates(run: Run) -> LRFinding:
    recipe = run.recipe
    if recipe.lr_max is not None:
        return choose_rates(recipe, None)
    is_asked = recipe.finder_steps is not None or recipe.finder_sweeps is not None
    if run.start is not None and "optimizer" not in run.given and not is_asked:
        rule = f"LRMAX is {START_LR:g}, which suits a network that starts from weights"
        return choose_rates(recipe, LRFinding([], [], [], START_LR, None, rule))
    with progress_bar("range test") as on_step:
        return choose_rates(recipe, range_test(run, on_step))


def range_test(run: Run, on_step: Callable[[int, int], None] | None = None) -> LRFinding:
    """The range test of a run, on batches of this process alone.

    Args:
        run: before its first step.
        on_step: called after each step with the number of steps done and that of all.

    Raises:
        RangeTestError: it finds nothing, and the recipe's ``lr_fallback`` is off.
    """
    recipe = run.recipe
    sweeps, steps = finder_plan(recipe, len(run.train))
    try:
        return find_lr(
            run.model, run.optimizer, run.criterion, run.loader(train=True, shared=False),
            start_lr=recipe.finder_start_lr, end_lr=recipe.finder_end_lr, num_steps=steps,
            num_sweeps=sweeps, ratio=recipe.lr_ratio, autocast_dtype=run.compute.dtype,
            on_step=on_step,
        )  # fmt: skip
    except RangeTestError as error:
        if not recipe.lr_fallback:
            raise RangeTestError(
                f"{error}; lr_fallback (--lr-fallback) trains at the safe one", error.finding
            ) from error
        _, safe = usual_rates(run.optimizer)
        name, why = type(run.optimizer).__name__, error.finding.rule
        rule = f"LRMAX is {safe:g}, which is safe with {name}, because {why}"
        return dataclasses.replace(error.finding, lr_max=safe, rule=rule)


def finder_plan(recipe: Recipe, num_images: int) -> tuple[int, int]:
    """Sweeps of the range test and steps of each: what the recipe gives, else what is affordable.

    All sweeps together take at most a tenth of the images of the training: three sweeps of up to
    100 steps, or fewer with 25 steps each, and never less than one of 20 steps.

    Args:
        recipe: of the run.
        num_images: training images.
    """
    budget = recipe.epochs * num_images // (10 * recipe.batch_size)
    sweeps = recipe.finder_sweeps
    if sweeps is None:
        sweeps = min(max(budget // (recipe.finder_steps or 25), 1), 3)
    steps = recipe.finder_steps or min(max(budget // sweeps, 20), 100)
    return sweeps, steps


def choose_rates(recipe: Recipe, found: LRFinding | None) -> LRFinding:
    """LRMAX and LRMIN with their rule: what the recipe gives, else what was found."""
    if found is None:
        found = LRFinding([], [], [], recipe.lr_max, None, "LRMAX is given")
    lr_min, rule = recipe.lr_min, "LRMIN is given"
    if lr_min is None and recipe.lr_ratio is None and found.lr_min is not None:
        return found
    if lr_min is None:
        ratio = recipe.lr_ratio or USUAL_RATIO
        lr_min, rule = found.lr_max / ratio, f"LRMIN is LRMAX / {ratio:g}"
    rule = f"{found.rule.split('; ')[0]}; {rule}"
    return dataclasses.replace(found, lr_min=lr_min, rule=rule)


def accuracy_of_average(run: Run) -> float | None:
    """Of the average of the weights, 0..1; None if there is none beside the kept weights."""
    kept = run.extras["kept"]
    if kept is None or not kept.average or kept.keep == "average":
        return run.stored_average
    with kept.averaged():
        return evaluate(run.model, run.test_loader, compute=run.compute)[1]


def log_accuracy(run: Run, evaluation: Evaluation) -> None:
    """Write the accuracy of the kept weights into the log, and that of their average beside it."""
    kept = ""
    if run.recipe.keep != "last":
        accuracies = [record.test_accuracy for record in run.history.epochs]
        kept = f", {kept_words(run.recipe.keep, accuracies)}"
    run.log.write(
        f"Accuracy {100 * evaluation.accuracy:.2f} % on {len(run.test):,} "
        f"{run.test.name} ({run.train.source}){kept} after {describe_run(run)['seconds']:.1f} s "
        "of training"
    )
    if evaluation.average_accuracy is not None:
        run.log.write(f"Average of the weights: {100 * evaluation.average_accuracy:.2f} %")


def one_cycle_of(
    optimizer: torch.optim.Optimizer, recipe: Recipe, finding: LRFinding, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's cycle over all its epochs."""
    cycled = recipe.beta1_at_peak is not None
    return one_cycle(
        optimizer,
        lr_max=finding.lr_max,
        lr_min=finding.lr_min,
        total_steps=recipe.epochs * steps_per_epoch,
        peak_step=round(recipe.peak * steps_per_epoch),
        momentum=(recipe.beta1, recipe.beta1_at_peak) if cycled else None,
    )
