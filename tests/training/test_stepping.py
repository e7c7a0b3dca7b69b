import random

import numpy as np
import pytest
import torch
from small_runs import EPOCHS, STEPS, Batches, Lines, digest, make, new, stop_after
from torch import nn
from torch.optim import lr_scheduler as kinds

from onecycle.errors import UsageError
from onecycle.training.compute import Compute
from onecycle.training.loop import fit
from onecycle.training.stepping import check_scheduler


def run(make_scheduler, step_scheduler="batch", *, folder=None, stop=lambda: False, evaluate=True):
    """A run of ``small_runs``: 2 epochs of 4 steps, with a learning rate of 0.01."""
    parts, loader, log = make(), Batches(), Lines()
    for group in parts["optimizer"].param_groups:
        for name in ("initial_lr", "max_lr", "min_lr"):
            group.pop(name, None)
        group["lr"] = 0.01
    parts["scheduler"] = make_scheduler(parts["optimizer"])
    torch.manual_seed(5)
    np.random.seed(0)
    random.seed(0)
    parts["history"] = fit(
        parts["model"], loader, loader.to_evaluate if evaluate else None, parts["optimizer"],
        parts["scheduler"], nn.CrossEntropyLoss(), epochs=EPOCHS, step_scheduler=step_scheduler,
        compute=Compute("cpu"), callbacks=[log], stop=stop,
        checkpoint=folder and new(folder, every_s=0.0, extra={"log": log}),
    )  # fmt: skip
    return parts


def rates(parts):
    return [step.lr for step in parts["history"].steps]


def halved(optimizer):
    return kinds.StepLR(optimizer, 1, 0.5)


def plateau(optimizer):
    return kinds.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=1e9)


def test_without_a_scheduler_the_learning_rate_is_constant():
    assert rates(run(lambda _: None)) == [0.01] * (EPOCHS * STEPS)


def test_a_scheduler_is_stepped_after_each_batch_or_after_each_epoch_but_the_last():
    by_batch, by_epoch = run(halved), run(halved, "epoch")
    assert rates(by_batch) == [0.01 / 2**n for n in range(8)]
    assert rates(by_epoch) == [0.01] * 4 + [0.005] * 4
    assert by_batch["scheduler"].last_epoch == 7 and by_epoch["scheduler"].last_epoch == 1


def test_a_scheduler_that_watches_the_loss_is_given_that_of_the_test_images():
    seen = []

    class Watcher(kinds.ReduceLROnPlateau):
        def step(self, metrics):
            seen.append(metrics)
            super().step(metrics)

    found = run(lambda optimizer: Watcher(optimizer, mode="max", factor=0.1, patience=0))
    assert seen == [found["history"].epochs[0].test_loss]
    assert rates(found) == [0.01] * 8  # the first loss is the best so far
    assert rates(run(plateau)) == pytest.approx([0.01] * 4 + [0.001] * 4)
    with pytest.raises(UsageError, match="ReduceLROnPlateau needs the loss of test images"):
        run(plateau, evaluate=False)


@pytest.mark.parametrize(
    ("scheduler", "step"), [(halved, "epoch"), (plateau, "batch"), (lambda _: None, "batch")]
)
@pytest.mark.parametrize("stop_at", [2, 4, 6])
def test_a_stopped_run_resumes_to_the_same_bits(scheduler, step, stop_at, tmp_path):
    whole = run(scheduler, step, folder=tmp_path / "whole")
    expected = digest({name: part for name, part in whole.items() if part is not None})
    partial = run(scheduler, step, folder=tmp_path / "run", stop=stop_after(stop_at))
    assert len(partial["history"].steps) < 8
    resumed = run(scheduler, step, folder=tmp_path / "run")
    assert digest({name: part for name, part in resumed.items() if part is not None}) == expected


@pytest.mark.parametrize("step", ["batch", "epoch"])
def test_a_scheduler_that_another_training_moved_is_refused_before_a_step(step):
    parts = run(halved, step)
    before = {name: value.clone() for name, value in parts["model"].state_dict().items()}
    with pytest.raises(UsageError, match="stepped [17] times before.* new scheduler for each fit"):
        fit(
            parts["model"], Batches(), None, parts["optimizer"], parts["scheduler"],
            nn.CrossEntropyLoss(), epochs=EPOCHS, step_scheduler=step,
        )  # fmt: skip
    for name, value in parts["model"].state_dict().items():
        assert torch.equal(value, before[name])


def optimizer():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.parametrize(
    "scheduler",
    [
        kinds.StepLR(optimizer(), 10, 0.1),
        kinds.MultiStepLR(optimizer(), [10, 20, 30, 40], 0.1),
        kinds.ExponentialLR(optimizer(), 0.9),
        kinds.CosineAnnealingLR(optimizer(), T_max=30),
        kinds.PolynomialLR(optimizer(), total_iters=30),
    ],
)
def test_a_scheduler_that_is_meant_per_epoch_is_not_stepped_per_batch(scheduler):
    options = {"evaluated": True, "epochs": 30, "num_steps": 98}
    with pytest.raises(UsageError, match=f'{type(scheduler).__name__}.*step_scheduler="epoch"'):
        check_scheduler(scheduler, per_epoch=False, **options)
    check_scheduler(scheduler, per_epoch=True, **options)


@pytest.mark.parametrize(
    "scheduler",
    [
        kinds.StepLR(optimizer(), 980, 0.1),
        kinds.MultiStepLR(optimizer(), [98, 980], 0.1),
        kinds.ExponentialLR(optimizer(), 0.999),
        kinds.CosineAnnealingLR(optimizer(), T_max=30 * 98),
        kinds.LambdaLR(optimizer(), lambda n: 0.5**n),
    ],
)
def test_a_scheduler_in_batches_is_stepped_per_batch(scheduler):
    check_scheduler(scheduler, per_epoch=False, evaluated=False, epochs=30, num_steps=98)


def test_another_word_and_another_length_are_refused():
    with pytest.raises(UsageError, match="step_scheduler is 'epochs'; it must be batch or epoch"):
        run(halved, "epochs")
    with pytest.raises(UsageError, match="2 of the schedule, and the schedule has 8"):
        run(lambda optimizer: kinds.OneCycleLR(optimizer, 0.1, total_steps=8), "epoch")
