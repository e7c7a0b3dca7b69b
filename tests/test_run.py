import dataclasses
import errno
import json
import os
import shutil

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn

from onecycle import PRESETS, Recipe, Run, load_digits
from onecycle.data.dataset import ImageDataset
from onecycle.errors import CheckpointError, RangeTestError, StorageError, UsageError
from onecycle.files import lock_folder
from onecycle.recipe import as_data, may_be
from onecycle.results.folder import own_folder, to_picture
from onecycle.run_figures import FIGURES
from onecycle.run_parts import finder_plan

RECIPE = Recipe(epochs=3, batch_size=16, lr_max=0.01, flip_probability=0.0)
FINDER = dataclasses.replace(
    RECIPE, lr_max=None, finder_steps=40, finder_start_lr=1e-4, finder_end_lr=3.0
)
HERE = {"device": "cpu", "precision": "float32"}


class Tiny(nn.Module):
    """A network that trains in milliseconds and draws random numbers while it does."""

    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1)
        )
        self.layer3 = nn.Conv2d(16, 16, 3, stride=2)
        self.head = nn.Linear(16 * 9, num_classes)

    def forward(self, images):
        maps = self.layer3(self.features(images))
        return self.head(nn.functional.adaptive_avg_pool2d(maps, 3).flatten(1))


class Wide(Tiny):
    """Has a first layer that Muon's preparation can whiten."""

    def __init__(self, classes):
        super().__init__(classes)
        self.features[0] = nn.Conv2d(3, 64, 3, stride=4)
        self.features[1] = nn.BatchNorm2d(64)
        self.layer3 = nn.Conv2d(64, 16, 3, stride=2)


@pytest.fixture(scope="module")
def data():
    train, test = load_digits()
    return train.sample(72), test.sample(30)


def weights(run):
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished run of FINDER; nobody may change its folder."""
    run = Run(tmp_path_factory.mktemp("finished") / "run", data, Tiny, FINDER, **HERE)
    assert run.save() == run.folder
    return run


class StopAfter:
    """Interrupts the training at the end of an epoch, as a notebook's stop button does."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch(self, record):
        if record.epoch == self.epoch:
            raise KeyboardInterrupt


def test_save_alone_is_a_whole_training(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "classes.csv", "errors.csv", "figures", "history.csv", "log.txt", "model.pt",
        "model.safetensors", "report.html", "results.json", "steps.csv",
    }  # fmt: skip
    figures = {path.stem for path in (finished.folder / "figures").iterdir()}
    assert figures == set(FIGURES)
    results = json.loads((finished.folder / "results.json").read_text("utf-8"))
    assert results["final"]["test_accuracy"] == finished.evaluate().accuracy
    assert results["parts"] == {"model": "Tiny"}
    assert len(results["history"]) == FINDER.epochs


def test_the_seed_decides_the_weights_whatever_is_called_before(finished, data, tmp_path):
    run = Run(tmp_path, data, Tiny, FINDER, **HERE)
    run.figure("samples")
    run.find_lr()
    torch.rand(3)  # as a cell in between might
    run.fit()
    assert same(weights(run), weights(finished))
    other = Run(tmp_path / "other", data, Tiny, dataclasses.replace(FINDER, seed=1), **HERE)
    other.fit()
    assert not same(weights(other), weights(finished))


def test_each_step_gives_what_it_gave(finished):
    assert finished.find_lr() is finished.find_lr()
    assert finished.fit() is finished.fit()
    assert finished.evaluate() is finished.evaluate()


@pytest.mark.parametrize("anew", [False, True])
def test_a_stopped_run_resumes_to_the_same_bits(finished, data, tmp_path, anew, capsys):
    stopping = Run(tmp_path, data, Tiny, FINDER, callbacks=[StopAfter(2)], **HERE)
    history = stopping.fit()
    assert len(history.epochs) == 2 and not stopping.is_complete
    for step in (stopping.evaluate, stopping.save, lambda: stopping.figure("misclassified")):
        with pytest.raises(UsageError, match="stopped in epoch 3 of 3"):
            step()
    assert stopping.figure("history") is not None  # what there is can be looked at
    resumed = Run(tmp_path, data, Tiny, FINDER, **HERE) if anew else stopping
    assert len(resumed.fit().epochs) == 3
    assert same(weights(resumed), weights(finished))
    assert capsys.readouterr().out.count("EPOCH = 3") == 1
    resumed.save()
    assert (tmp_path / "log.txt").read_text().count("EPOCH = 1 |") == 1


def test_a_stopped_run_of_another_recipe_is_refused(data, tmp_path):
    Run(tmp_path, data, Tiny, RECIPE, callbacks=[StopAfter(1)], **HERE).fit()
    for other in (
        Run(tmp_path, data, Tiny, dataclasses.replace(RECIPE, label_smoothing=0.2), **HERE),
        Run(tmp_path, data, lambda classes: Tiny(classes), RECIPE, **HERE),
        Run(tmp_path, (data[0].sample(64), data[1]), Tiny, RECIPE, **HERE),
    ):
        with pytest.raises(CheckpointError, match="of another run"):
            other.fit()
    fresh = Run(tmp_path, data, Tiny, RECIPE, resume="never", **HERE)
    assert len(fresh.fit().epochs) == 3


def test_a_finished_run_is_shown_again_and_stays_as_it_is(finished, data, capsys):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in finished.folder.rglob("*.*")}
    again = Run(finished.folder, data, Tiny, FINDER, **HERE)
    assert again.find_lr() == finished.find_lr()
    assert "already complete (3 of 3 epochs)" in capsys.readouterr().out
    assert again.fit().epochs == finished.history.epochs
    assert again.history.steps == finished.history.steps
    assert np.array_equal(again.evaluate().probabilities, finished.evaluate().probabilities)
    assert set(again.figures()) == set(FIGURES)
    assert again.save() == finished.folder
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in finished.folder.rglob("*.*")}
    assert after == before


def test_a_finished_run_is_never_replaced(finished, data):
    others = {
        "recipe": Run(finished.folder, data, Tiny, RECIPE, **HERE),
        "images": Run(finished.folder, (data[0], data[1].sample(20)), Tiny, FINDER, **HERE),
        "network": Run(finished.folder, data, lambda classes: Tiny(classes), FINDER, **HERE),
        "afresh": Run(finished.folder, data, Tiny, FINDER, resume="never", **HERE),
    }
    for run in others.values():
        with pytest.raises(StorageError, match="holds a finished run already"):
            run.fit()


def test_a_finished_run_from_before_there_were_digests_is_known(finished, data, tmp_path):
    for name in ("steps.csv", "log.txt", "model.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    results = json.loads((finished.folder / "results.json").read_text("utf-8"))
    del results["identity"], results["parts"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert Run(tmp_path, data, Tiny, FINDER, **HERE).fit().epochs == finished.history.epochs
    with pytest.raises(StorageError):
        Run(tmp_path, data, Tiny, RECIPE, **HERE).fit()


def test_load_gives_the_trained_network(finished, data, tmp_path):
    run = Run.load(finished.folder, data, Tiny, **HERE)
    assert may_be(as_data(run.recipe), FINDER) and run.is_complete
    assert same(weights(run), weights(finished))
    guesses = run.predict(data[1].data[:3], top=2)
    assert [len(best) for best in guesses] == [2, 2, 2]
    expected = finished.evaluate().probabilities[:3].max(axis=1)
    assert np.allclose([best[0].probability for best in guesses], expected, atol=1e-5)
    with pytest.raises(UsageError, match=r"is the file a.jpg; give a list"):
        run.predict("a.jpg")
    (tmp_path / "some").mkdir()
    opened = [Image.fromarray(image) for image in data[1].data[:3]]
    for name, picture in zip("cab", opened):
        picture.save(tmp_path / "some" / f"{name}.png")
    assert run.predict(opened, top=2) == guesses
    assert run.predict(tmp_path / "some", top=2) == [guesses[1], guesses[2], guesses[0]]
    with pytest.raises(UsageError, match="is a single picture; give a list"):
        run.predict(opened[0])


def test_load_needs_a_finished_run_of_the_network(finished, data, tmp_path):
    with pytest.raises(CheckpointError, match="no finished run"):
        Run.load(tmp_path, data, Tiny, **HERE)
    with pytest.raises(UsageError, match=r"is Tiny, .*Run.load\(folder, data, Tiny\)"):
        Run.load(finished.folder, data, **HERE)
    with pytest.raises(CheckpointError, match="does not fit"):
        Run.load(finished.folder, data, lambda classes: nn.Flatten(), **HERE)


def test_damaged_files_of_a_finished_run_are_one_clear_error(finished, data, tmp_path):
    for name in ("results.json", "steps.csv", "log.txt", "model.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    (tmp_path / "steps.csv").write_text("step,lr,loss\n0,high,2.3\n")
    with pytest.raises(CheckpointError, match="steps.csv cannot be read: row 1.lr is 'high'"):
        Run(tmp_path, data, Tiny, FINDER, **HERE).fit()


def test_a_run_says_where_it_comes_from_and_keeps_that_over_a_stop(data, tmp_path, monkeypatch):
    monkeypatch.setattr("onecycle.run.FIGURES", {})  # most of the time of a run this small
    begun = {"date": "2026-01-01T00:00:00+00:00", "commit": "one"}
    monkeypatch.setattr("onecycle.run.begin", lambda: begun)
    options = {**HERE, "callbacks": [StopAfter(2)]}
    first = Run(tmp_path, data, Tiny, RECIPE, name="a\nname", author="Ada", **options).fit()
    monkeypatch.setattr("onecycle.run.begin", lambda: {"date": "later", "commit": "another"})
    resumed = Run(tmp_path, data, Tiny, RECIPE, **HERE)  # without its name
    resumed.save()
    stored = json.loads((tmp_path / "results.json").read_text("utf-8"))
    seconds = [row["train_seconds"] for row in stored["history"]]
    assert stored["run"] == {
        "name": "a name", "author": "Ada", **begun, "seconds": sum(seconds),
        "parameters": sum(p.numel() for p in resumed.model.parameters()),
    }  # fmt: skip
    assert seconds[:2] == [record.train_seconds for record in first.epochs]
    assert stored["images_sha256"] == [part.digest() for part in data]
    assert "a name by Ada, begun 2026-01-01" in (tmp_path / "log.txt").read_text("utf-8")
    report = (tmp_path / "report.html").read_text("utf-8")
    assert "<title>a name: Tiny on digits</title>" in report and "by Ada" in report
    again = Run.load(tmp_path, data, Tiny, **HERE)
    assert again.about["run"] == stored["run"]


def test_the_name_is_the_folders_if_none_is_given_and_decides_no_numbers(finished, data, tmp_path):
    assert finished.about["run"]["name"] == finished.folder.name
    other = Run(tmp_path, data, Tiny, FINDER, name="another", **HERE)
    assert other.identity == finished.identity
    other.fit()
    assert same(weights(other), weights(finished))


def test_a_folder_in_use_is_refused_before_the_range_test(data, tmp_path):
    with lock_folder(tmp_path), pytest.raises(StorageError, match="in use by process"):
        Run(tmp_path, data, Tiny, FINDER, **HERE).find_lr()


def test_nothing_is_left_of_a_run_that_could_not_begin(data, tmp_path):
    flat = dataclasses.replace(
        FINDER, finder_start_lr=1e-12, finder_end_lr=1e-11, lr_fallback=False
    )
    run = Run(tmp_path / "run", data, Tiny, flat, **HERE)
    with pytest.raises(RangeTestError, match="give lr_max .0.002 is safe with Adam.*; lr_fallback"):
        run.fit()
    assert not (tmp_path / "run").exists()
    (axes,) = run.figure("lr_finder").axes
    assert not [line for line in axes.lines if "LRM" in str(line.get_label())]  # it says nothing


def test_a_run_may_fall_back_to_a_safe_rate(data, tmp_path):
    flat = dataclasses.replace(FINDER, finder_start_lr=1e-12, finder_end_lr=1e-11, epochs=1)
    run = Run(tmp_path, data, Tiny, flat, **HERE)
    run.fit()
    found = run.find_lr()
    assert (found.lr_max, found.lr_min) == (0.002, 0.002 / 200)
    assert len(found.lrs) == 40 and found.rule.startswith("LRMAX is 0.002, which is safe with Adam")
    assert "lr_finder" in run.figures()


@pytest.mark.parametrize(
    ("fields", "images", "plan"),
    [
        ({}, 50_000, (3, 78)),
        ({"epochs": 90, "batch_size": 256}, 1_000_000, (3, 100)),
        ({"epochs": 8, "batch_size": 64}, 1437, (1, 20)),
        ({"epochs": 24, "batch_size": 16}, 192, (1, 28)),
        ({"epochs": 40, "batch_size": 16}, 240, (2, 30)),
        ({"epochs": 1, "batch_size": 64}, 64, (1, 20)),
        ({"finder_steps": 200}, 50_000, (1, 200)),
        ({"finder_steps": 40}, 100, (1, 40)),
        ({"finder_sweeps": 5}, 50_000, (5, 46)),
        ({"finder_sweeps": 2, "finder_steps": 300}, 100, (2, 300)),
    ],
)
def test_a_range_test_takes_a_tenth_of_the_training_at_most(fields, images, plan):
    recipe = Recipe(**{"epochs": 24, "batch_size": 512} | fields)
    assert finder_plan(recipe, images) == plan
    sweeps, steps = plan
    if not fields.keys() & {"finder_steps", "finder_sweeps"} and steps > 20:
        assert 10 * sweeps * steps * recipe.batch_size <= recipe.epochs * images


def test_too_few_steps_are_refused_at_once(data, tmp_path):
    with pytest.raises(UsageError, match="at least 3"):
        Run(tmp_path, data, Tiny, Recipe(epochs=1, batch_size=64, lr_max=0.1), **HERE)


def test_rates_that_are_given_need_no_range_test(data, tmp_path):
    run = Run(tmp_path, data, Tiny, dataclasses.replace(RECIPE, lr_min=0.001), **HERE)
    finding = run.find_lr()
    assert (finding.lr_max, finding.lr_min, finding.lrs) == (0.01, 0.001, [])
    assert finding.rule == "LRMAX is given; LRMIN is given"
    assert Run(tmp_path, data, Tiny, RECIPE, **HERE).find_lr().lr_min == 0.01 / 200
    assert set(run.figures()) == set(FIGURES) - {"lr_finder"}


def test_a_network_may_be_given_built(data, tmp_path):
    model = Tiny(10)
    before = model.head.weight.clone()
    run = Run(tmp_path, data, model, RECIPE, **HERE)
    assert torch.equal(run.model.head.weight.cpu(), before)
    run.fit()
    assert not torch.equal(run.model.head.weight.cpu(), before)


def test_an_unknown_figure_is_named_with_those_there_are(data, tmp_path):
    with pytest.raises(UsageError, match="'loss'.*history"):
        Run(tmp_path, data, Tiny, RECIPE, **HERE).figure("loss")


# --- what people change: one argument each ------------------------------------------------------


def test_own_optimizer_and_schedule(data, tmp_path):
    def sgd(model, recipe):
        return torch.optim.SGD(model.parameters(), lr=recipe.finder_start_lr, momentum=0.9)

    def constant(optimizer, recipe, found, steps):
        assert steps == len(data[0]) // 16 + 1
        return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    run = Run(tmp_path, data, Tiny, RECIPE, optimizer=sgd, scheduler=constant, **HERE)
    history = run.fit()
    assert isinstance(run.optimizer, torch.optim.SGD)
    assert {step.lr for step in history.steps} == {0.01}  # LRMAX
    assert run.given == {"model": "Tiny", "optimizer": "sgd", "scheduler": "constant"}


def test_own_loss(data, tmp_path):
    class Doubled(nn.CrossEntropyLoss):
        def forward(self, output, labels):
            return 2 * super().forward(output, labels)

    runs = [
        Run(tmp_path / name, data, Tiny, RECIPE, criterion=criterion, **HERE)
        for name, criterion in (("plain", None), ("doubled", Doubled(label_smoothing=0.1)))
    ]
    for run in runs:
        run.fit()
    assert not same(*map(weights, runs))


def test_a_function_is_a_loss_as_well(data, tmp_path):
    losses = nn.CrossEntropyLoss(), lambda output, labels: F.cross_entropy(output, labels)
    runs = [
        Run(tmp_path / str(number), data, Tiny, RECIPE, criterion=loss, **HERE)
        for number, loss in enumerate(losses)
    ]
    for run in runs:
        run.fit()
    assert same(*map(weights, runs))


def test_own_augmentation_is_of_one_image(data, tmp_path):
    from torchvision.transforms import v2

    pipeline = v2.Compose(
        [v2.ToImage(), v2.RandomHorizontalFlip(1.0), v2.ToDtype(torch.float32, scale=True)]
    )
    run = Run(tmp_path, data, Tiny, RECIPE, augment=pipeline, **HERE)
    images, labels = run.samples
    image = data[0].data[data[0].targets == labels[0]] / 255
    assert any(np.allclose(images[0], x[:, ::-1].transpose(2, 0, 1), atol=1e-6) for x in image)
    run.fit()
    assert run.data["augmentation"] == "torchvision"


def test_own_images_of_another_size(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 48, 48, 3), dtype=np.uint8)
    mine = ImageDataset(images, np.arange(60) % 2, classes=("cat", "dog"), source="my cats")
    run = Run(tmp_path, mine.hold_out(20), Tiny, RECIPE, **HERE)
    assert "[-1, 16, 12, 12]" in run.summary()
    run.save()
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert results["data"]["evaluated_on"] == "held-out training images"


def test_own_callbacks_may_have_either_method(data, tmp_path):
    class Steps:
        seen = []

        def on_step(self, epoch, step, accuracy):
            self.seen.append((epoch, step.step))

    class Epochs:
        seen = []

        def on_epoch(self, record):
            self.seen.append(record.epoch)

    Run(tmp_path, data, Tiny, RECIPE, callbacks=[Steps(), Epochs()], **HERE).fit()
    assert Epochs.seen == [1, 2, 3]
    assert Steps.seen[-1] == (3, 14) and len(Steps.seen) == 15


def test_the_speedrun_prepares_the_network(data, tmp_path):
    recipe = dataclasses.replace(
        PRESETS["speedrun"], epochs=2, batch_size=24, flip_probability=0.0, alternating_flip=False
    )

    run = Run(tmp_path, data, Wide, recipe, **HERE)
    assert not run.model.features[0].weight.requires_grad  # whitened
    assert run.fit().epochs[-1].epoch == 2


def test_a_results_file_that_cannot_be_read_is_not_written_over(data, tmp_path):
    for text in ("{", '{"history": []}', '{"history": [], "recipe": 3}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises((CheckpointError, StorageError)):
            Run(tmp_path, data, Tiny, RECIPE, **HERE).fit()
        assert (tmp_path / "results.json").read_text() == text


class WithLogits(Tiny):
    def forward(self, images):
        return {"loss": None, "logits": super().forward(images)}


def small_vit(classes):
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8,
        num_classes=classes,
    )  # fmt: skip


def narrow_resnet18(classes):
    model = torchvision.models.resnet18(num_classes=classes)
    # Quicker, and the last maps are still above 1x1.
    model.layer4, model.fc = nn.Conv2d(256, 16, 1), nn.Linear(16, classes)
    return model


@pytest.fixture
def two_figures(monkeypatch):
    """All take seconds to draw."""
    drawn = {name: FIGURES[name] for name in ("history", "grad_cam")}
    monkeypatch.setattr("onecycle.run.FIGURES", drawn)


@pytest.mark.parametrize(
    ("model", "layer"), [(small_vit, ""), (WithLogits, "layer3"), (narrow_resnet18, "layer4")]
)
def test_other_kinds_of_networks_are_trained_to_the_end(model, layer, data, tmp_path, two_figures):
    recipe = dataclasses.replace(RECIPE, epochs=1)
    run = Run(tmp_path, (data[0].sample(48), data[1].sample(12)), model, recipe, **HERE)
    assert "Total params" in run.summary()
    run.save()
    assert run.error_maps.layer == layer
    assert (tmp_path / "figures" / "grad_cam.png").exists() == bool(layer)
    log = (tmp_path / "log.txt").read_text("utf-8")
    assert ("without Grad-CAM: no layer" in log) == (not layer)
    report = (tmp_path / "report.html").read_text("utf-8")
    assert ("Grad-CAM" in report) == bool(layer)
    assert run.predict(run.test.data[:2])[0][0].probability <= 1
    reopened = Run.load(tmp_path, (data[0].sample(48), data[1].sample(12)), model, **HERE)
    assert same(weights(reopened), weights(run))


def test_an_error_in_grad_cam_does_not_cost_the_report(data, tmp_path, two_figures):
    class Stubborn(Tiny):
        """Does not take the copy of its input that Grad-CAM makes."""

        def forward(self, images):
            if images.requires_grad:
                raise RuntimeError("no gradients here\nplease")
            return super().forward(images)

    run = Run(tmp_path, data, Stubborn, dataclasses.replace(RECIPE, epochs=1), **HERE)
    run.save()
    assert "without Grad-CAM: no gradients here" in run.log.lines
    assert "grad_cam" not in run.figures() and (tmp_path / "report.html").exists()


def test_the_scheduler_of_a_run_may_be_stepped_per_epoch_or_be_none(data, tmp_path):
    def halved(optimizer, recipe, finding, steps_per_epoch):
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def rates(name, scheduler, **options):
        run = Run(tmp_path / name, data, Tiny, RECIPE, scheduler=scheduler, **options, **HERE)
        return run, [epoch.lr for epoch in run.fit().epochs]

    run, found = rates("epoch", halved, step_scheduler="epoch")
    assert found == [0.01, 0.005, 0.0025]
    assert run.given == {"model": "Tiny", "scheduler": "halved", "step_scheduler": "epoch"}
    assert rates("none", lambda *_: None)[1] == [0.01] * 3
    with pytest.raises(UsageError, match="the recipe's one cycle is stepped after every batch"):
        Run(tmp_path, data, Tiny, RECIPE, step_scheduler="epoch", **HERE)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda classes: Tiny(classes + 1), "has 11 outputs and the images have 10 classes"),
        (lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(3, 10)), "does not take images"),
    ],
)
def test_a_network_for_other_images_or_classes_is_refused_before_the_range_test(
    model, said, data, tmp_path
):
    run = Run(tmp_path / "run", data, model, FINDER, **HERE)
    with pytest.raises(UsageError, match=said):
        run.find_lr()
    assert not (tmp_path / "run").exists()


def test_what_a_killed_process_left_beside_results_goes_at_the_next_start(finished, data, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    for name in ("last.ckpt", ".last.ckpt.1.part"):
        (tmp_path / "run" / name).write_bytes(b"left")
    assert Run(tmp_path / "run", data, Tiny, FINDER, **HERE).fit().epochs
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert names == {file.name for file in finished.folder.iterdir()}


def test_a_matplotlibrc_of_the_user_does_not_spoil_the_figures(finished):
    with matplotlib.rc_context({"text.usetex": True, "figure.dpi": 1}):  # LaTeX is not needed
        content = to_picture(finished.figure("confusion_matrix"))
    assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_a_finished_run_in_a_folder_that_cannot_be_written_is_opened(
    finished, data, tmp_path, monkeypatch
):
    shutil.copytree(finished.folder, tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("onecycle.files._open_locked", refuse)
    run = Run(tmp_path / "run", data, Tiny, FINDER, **HERE)
    assert run.fit().epochs and run.is_complete
    with own_folder(tmp_path / "run"):
        pass
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}


def test_a_full_disk_at_the_results_tells_where_the_training_is_kept(data, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("onecycle.results.folder.to_csv", full)
    run = Run(tmp_path / "run", data, Tiny, FINDER, **HERE)
    with pytest.raises(StorageError, match=r"MB free.*last\.ckpt.*same command"):
        run.save()
    monkeypatch.undo()
    again = Run(tmp_path / "run", data, Tiny, FINDER, **HERE)
    again.save()
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert "results.json" in names and "last.ckpt" not in names
