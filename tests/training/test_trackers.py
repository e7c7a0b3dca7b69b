import builtins
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from onecycle.errors import StorageError, UsageError
from onecycle.training.trackers import TensorBoardTracker, TrackerCallback

STEPS_PER_EPOCH = 3


class Notebook:
    """An object that is no tracker of ours but has their one method."""

    def __init__(self):
        self.seen = []

    def log(self, values, step):
        self.seen += [(name, step, value) for name, value in values.items()]


def run(tracker, *, first_step=0, epochs=2, shift=0.0, test=True):
    """The calls that a training loop makes, with values that tell the steps apart."""
    callback = TrackerCallback(tracker, STEPS_PER_EPOCH)
    for epoch in range(1, epochs + 1):
        for number in range((epoch - 1) * STEPS_PER_EPOCH, epoch * STEPS_PER_EPOCH):
            if number >= first_step:
                step = SimpleNamespace(step=number, lr=0.5**number, loss=shift + number)
                callback.on_step(epoch, step, 0.5)
        if epoch * STEPS_PER_EPOCH > first_step:
            callback.on_epoch(
                SimpleNamespace(
                    epoch=epoch, lr=0.1, train_loss=shift + 1 / epoch, train_accuracy=0.25 * epoch,
                    test_loss=2 / epoch if test else None, test_accuracy=0.125 if test else None,
                )
            )  # fmt: skip


def read(folder):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder))
    reader.Reload()
    scalars = [
        (name, event.step, event.value)
        for name in reader.Tags()["scalars"]
        for event in reader.Scalars(name)
    ]
    return scalars, reader


def test_any_object_with_log_gets_every_value_at_its_step():
    notebook = Notebook()
    run(notebook)
    assert [value for value in notebook.seen if value[0] == "lr"] == [
        ("lr", number, 0.5**number) for number in range(6)
    ]
    assert [value for value in notebook.seen if value[0] == "loss/train"] == [
        ("loss/train", 2, 1.0), ("loss/train", 5, 0.5)
    ]  # fmt: skip
    assert {name for name, _, _ in notebook.seen} == {
        "lr", "loss/step", "loss/train", "loss/test", "accuracy/train", "accuracy/test"
    }  # fmt: skip
    steps = [step for _, step, _ in notebook.seen]
    assert steps == sorted(steps)  # trackers drop what comes late


def test_a_run_without_evaluation_has_no_test_values():
    notebook = Notebook()
    run(notebook, test=False)
    assert not [name for name, _, _ in notebook.seen if name.endswith("test")]


def test_tensorboard_shows_the_same_values(tmp_path):
    tracker, notebook = TensorBoardTracker(tmp_path / "events"), Notebook()
    run(tracker)
    run(notebook)
    tracker.close()
    written, _ = read(tmp_path / "events")
    assert sorted((n, s, pytest.approx(v, rel=1e-6)) for n, s, v in written) == sorted(
        notebook.seen
    )


def test_a_run_that_resumes_draws_no_step_twice(tmp_path):
    first = TensorBoardTracker(tmp_path)
    run(first)
    first.close()
    again = TensorBoardTracker(tmp_path)  # the last checkpoint was before step 4
    run(again, first_step=4, shift=100.0)
    again.close()
    written, _ = read(tmp_path)
    losses = sorted((step, value) for name, step, value in written if name == "loss/step")
    assert losses == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 104), (5, 105)]
    assert [s for name, s, _ in sorted(written) if name == "loss/train"] == [2, 5]


def test_figures_of_a_run_that_only_had_to_be_drawn_leave_its_curves(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    run(tracker)
    tracker.close()
    tracker = TensorBoardTracker(tmp_path)
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([0, 1])
    tracker.log_figures({"history": figure}, 5)
    tracker.close()
    written, reader = read(tmp_path)
    (picture,) = reader.Images("history")
    assert (picture.width, picture.height, picture.step) == (100, 50, 5)
    assert ("lr", 5) in {(name, step) for name, step, _ in written}


def test_without_tensorboard_one_line_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        TensorBoardTracker(tmp_path / "events")
    assert not (tmp_path / "events").exists()


def test_a_folder_that_cannot_be_made_is_named_at_the_first_value(tmp_path):
    (tmp_path / "file").write_text("")
    tracker = TensorBoardTracker(tmp_path / "file" / "events")
    with pytest.raises(StorageError, match="file"):
        tracker.log({"lr": 0.1}, 0)
    tracker.close()
