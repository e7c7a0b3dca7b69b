"""The recipe's settings beyond a plain training, in a whole Run."""

import dataclasses
import json

import pytest
import torch
from test_run import HERE, Tiny, Wide, same, weights
from torch import nn

from onecycle import PRESETS, Recipe, Run, load_digits
from onecycle.errors import UsageError
from onecycle.training import compute

PLAIN = Recipe(epochs=3, batch_size=16, lr_max=0.01, flip_probability=0.0)
ALL = dataclasses.replace(
    PLAIN, class_weights="auto", mixup=0.4, cutmix=1.0, average_steps=6, clip_norm=0.5
)


@pytest.fixture(scope="module")
def data():
    return load_digits()[0].sample(102).hold_out(30)


class Stop:
    """Interrupts the training after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, epoch, step, accuracy):
        if step.step == self.step:
            raise KeyboardInterrupt


def trained(folder, data, recipe, **options):
    run = Run(folder, data, Tiny, recipe, **HERE, **options)
    run.fit()
    return run


@pytest.mark.parametrize("keep", ["last", "average", "best"])
@pytest.mark.parametrize("step", [2, 9])
def test_a_stopped_run_resumes_to_the_same_bits_with_all_of_them(data, tmp_path, keep, step):
    recipe = dataclasses.replace(ALL, keep=keep)
    whole = trained(tmp_path / "whole", data, recipe)
    stopped = trained(tmp_path / "part", data, recipe, callbacks=[Stop(step)])
    assert len(stopped.history.steps) == step + 1
    resumed = trained(tmp_path / "part", data, recipe)
    assert same(weights(resumed), weights(whole))
    ours, theirs = (run.extras["kept"].state_dict() for run in (resumed, whole))
    assert ours["steps"] == theirs["steps"] == 15
    assert same(ours["average"], theirs["average"]) and same(ours["best"], theirs["best"])
    assert resumed.evaluate().summary() == whole.evaluate().summary()
    again = trained(tmp_path / "part", data, recipe)  # all epochs are done, nothing is written yet
    assert same(weights(again), weights(whole))


LEVERS = [
    {"head_rate": 0.125}, {"vector_rate": 0.25}, {"vector_decay": True}, {"decay_per_step": 0.002},
    {"start": "whitened"}, {"bn_groups": 4}, {"sharpness": 0.1},
    {"sharpness": 0.1, "sharpness_from": 1.2},
]  # fmt: skip


class Filters(nn.Sequential):
    """A network with filters enough to whiten, and batch norm."""

    def __init__(self, classes):
        super().__init__(
            nn.Conv2d(3, 32, 3, stride=4), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 3),
            nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(32, classes),
        )  # fmt: skip


@pytest.mark.parametrize("setting", LEVERS, ids=str)
def test_levers_change_the_training_and_are_resumed_to_the_same_bits(data, tmp_path, setting):
    def fitted(name, recipe, **options):
        run = Run(tmp_path / name, data, Filters, recipe, **HERE, **options)
        run.fit()
        return run

    recipe = dataclasses.replace(PLAIN, **setting)
    whole = fitted("whole", recipe)
    assert not same(weights(whole), weights(fitted("plain", PLAIN)))
    fitted("part", recipe, callbacks=[Stop(7)])
    assert same(weights(fitted("part", recipe)), weights(whole))


def test_the_decay_of_a_step_does_not_follow_the_learning_rate(data, tmp_path):
    decays = []
    for name, lr_max in (("one", 0.01), ("two", 0.02)):
        recipe = dataclasses.replace(PLAIN, lr_max=lr_max, decay_per_step=0.001, head_rate=0.5)
        run = Run(tmp_path / name, data, Filters, recipe, **HERE)
        run.fit()
        groups = run.optimizer.param_groups
        decays.append([lr_max * group["weight_decay"] * group["lr_scale"] for group in groups])
    assert decays[0] == pytest.approx([0.001, 0, 0.001, 0]) == decays[1]


@pytest.mark.parametrize("field", ["head_rate", "vector_rate", "body_rate", "decay_per_step"])
def test_the_rates_of_adam_are_refused_with_muon(field):
    with pytest.raises(UsageError, match=f"{field} is 0.5; it goes with optimizer adam alone"):
        dataclasses.replace(PRESETS["speedrun"], **{field: 0.5})


@pytest.mark.parametrize(
    "setting",
    [{"class_weights": "auto"}, {"mixup": 0.4}, {"cutmix": 1.0}, {"clip_norm": 0.1}],
    ids=str,
)
def test_each_of_them_changes_the_training(data, tmp_path, setting):
    few = data[0].subset(range(60)), data[1]  # of unequal classes
    runs = [
        trained(tmp_path / name, few, dataclasses.replace(PLAIN, **fields))
        for name, fields in (("plain", {}), ("set", setting))
    ]
    assert not same(*map(weights, runs))


def test_an_average_beside_the_training_does_not_change_it(data, tmp_path):
    plain = trained(tmp_path / "plain", data, PLAIN)
    beside = trained(tmp_path / "beside", data, dataclasses.replace(PLAIN, average_steps=6))
    kept = trained(
        tmp_path / "kept", data, dataclasses.replace(PLAIN, average_steps=6, keep="average")
    )
    assert same(weights(plain), weights(beside)) and not same(weights(plain), weights(kept))
    assert kept.history.steps == plain.history.steps
    assert plain.evaluate().average_accuracy is kept.evaluate().average_accuracy is None
    assert beside.evaluate().average_accuracy == kept.evaluate().accuracy
    assert same(weights(plain), weights(beside))


@pytest.mark.parametrize("keep", ["last", "average", "best"])
def test_a_finished_run_shows_the_weights_that_it_kept(data, tmp_path, keep, monkeypatch):
    monkeypatch.setattr(Run, "figures", lambda self: {})  # they take seconds
    recipe = dataclasses.replace(PLAIN, average_steps=6, keep=keep, lr_max=0.05)
    run = trained(tmp_path, data, recipe)
    evaluation = run.evaluate()
    if keep == "best":
        best = run.history.best
        assert evaluation.accuracy == best.test_accuracy
        assert best is max(run.history.epochs, key=lambda record: record.test_accuracy)
    run.save()
    final = json.loads((tmp_path / "results.json").read_text("utf-8"))["final"]
    assert final["test_accuracy"] == evaluation.accuracy
    assert final["epoch"] == (run.history.best.epoch if keep == "best" else 3)
    report = (tmp_path / "report.html").read_text("utf-8")
    assert ("average of the weights" in report) and (keep == "best") == ("the best on" in report)
    for again in (
        Run.load(tmp_path, data, Tiny, **HERE),
        Run(tmp_path, data, Tiny, recipe, **HERE),
    ):
        again.fit()
        assert same(weights(again), weights(run))
        assert again.evaluate().summary() == evaluation.summary()
    # The test images may be looked at in the end; the average was not measured on them.
    other = Run.load(tmp_path, (data[0], load_digits()[1].sample(30)), Tiny, **HERE)
    assert other.evaluate().average_accuracy is None


def test_the_best_epoch_is_not_chosen_on_test_images(tmp_path):
    train, test = load_digits()
    recipe = dataclasses.replace(PLAIN, keep="best")
    with pytest.raises(UsageError, match="keep is best and the images .* are test images"):
        Run(tmp_path / "run", (train.sample(64), test), Tiny, recipe, **HERE).fit()
    assert not (tmp_path / "run").exists()


def test_class_weights_are_those_of_the_recipes_own_loss(data, tmp_path):
    recipe = dataclasses.replace(PLAIN, class_weights="auto")
    with pytest.raises(UsageError, match="class_weights is auto and a criterion is given"):
        Run(tmp_path, data, Tiny, recipe, criterion=nn.CrossEntropyLoss())


@pytest.mark.parametrize("kind", ["speedrun", "augment", "criterion"])
def test_they_go_with_what_else_people_change(data, tmp_path, kind):
    class Focal(nn.Module):
        """Knows class indices only."""

        def forward(self, output, labels):
            own = output.log_softmax(1)[torch.arange(len(labels)), labels]
            return -((1 - own.exp()) ** 2 * own).mean()

    fields = {name: getattr(ALL, name) for name in ("mixup", "cutmix", "clip_norm")}
    recipe, options = dataclasses.replace(ALL, class_weights="none"), {}
    if kind == "speedrun":
        recipe = dataclasses.replace(
            PRESETS["speedrun"], epochs=3, batch_size=24, average_steps=6, class_weights="auto",
            **fields,
        )  # fmt: skip
    elif kind == "augment":
        options["augment"] = lambda image: torch.tensor(image / 255.0).permute(2, 0, 1).float()
    else:
        options["criterion"] = Focal()
    run = Run(tmp_path, data, Wide if kind == "speedrun" else Tiny, recipe, **HERE, **options)
    assert len(run.fit().epochs) == 3
    assert run.evaluate().average_accuracy is not None


def test_a_fused_run_resumes_to_the_same_bits_and_says_what_it_is(data, tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(compute, "get_compile_mode", lambda _, name: {"off": None}.get(name, name))

    def model(classes):
        layers = nn.Conv2d(3, 4, 16, stride=16), nn.BatchNorm2d(4), nn.ReLU()
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, classes), nn.LogSoftmax(1))

    def run(name, **options):
        options = {"compile": "fused", **HERE, **options}
        made = Run(tmp_path / name, data, model, PLAIN, **options)
        made.fit()
        return made

    whole, plain = run("whole"), run("plain", compile="off")
    assert len(run("part", callbacks=[Stop(6)]).history.steps) == 7
    resumed = run("part")
    assert same(weights(resumed), weights(whole)) and not same(weights(resumed), weights(plain))
    ours, theirs = ([step.loss for step in made.history.steps] for made in (resumed, plain))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert resumed.compute.describe()["compile_mode"] == "fused"
