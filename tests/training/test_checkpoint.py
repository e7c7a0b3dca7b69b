import ast
import errno
import io
import os
import pickle
import random
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import (
    EPOCHS,
    HEADER,
    IDENTITY,
    POINTS,
    STEPS,
    Batches,
    Evil,
    Lines,
    contents,
    damage,
    digest,
    foreign,
    in_child,
    kill_at,
    loop_parts,
    make,
    new,
    opened,
    sealed,
    stop_after,
    train,
)  # fmt: skip
from torch import nn

from onecycle.errors import CheckpointError, DivergedError, StorageError
from onecycle.records import EpochRecord, History, StepRecord
from onecycle.training import checkpoint
from onecycle.training.checkpoint import LAST, PREVIOUS
from onecycle.training.loop import fit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def saved(tmp_path):
    """A folder with two files, of steps 2 and 3 of a run."""
    train(make(), tmp_path, stop=stop_after(3))
    assert sorted(contents(tmp_path)) == [LAST, PREVIOUS]
    return tmp_path


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    parts = make()
    history, loader = train(parts, tmp_path_factory.mktemp("whole"))
    return digest(parts), loader.seen, history


# Going on


@pytest.mark.parametrize("steps", range(1, EPOCHS * STEPS))
def test_a_run_stopped_after_any_step_ends_like_one_that_never_stopped(tmp_path, whole_run, steps):
    first, second = make(), make(seed=9)
    _, before = train(first, tmp_path, stop=stop_after(steps))
    history, after = train(second, tmp_path)
    assert before.seen == whole_run[1][:steps] and after.seen == whole_run[1][steps:]
    assert digest(second) == whole_run[0]
    assert [epoch.train_loss for epoch in history.epochs] == [
        epoch.train_loss for epoch in whole_run[2].epochs
    ]


def test_a_run_stopped_at_every_step_ends_like_one_that_never_stopped(tmp_path, whole_run):
    for seed in range(EPOCHS * (STEPS + 1) + 1):  # only the first run's own beginning counts
        parts = make(seed)
        history, _ = train(parts, tmp_path, stop=stop_after(1))
    assert len(history.epochs) == EPOCHS and digest(parts) == whole_run[0]


def test_what_is_loaded_is_what_was_saved(tmp_path):
    parts = make()
    train(parts, tmp_path / "other")
    parts["scaler"] = torch.amp.GradScaler("cpu", init_scale=8.0)
    parts["scaler"].scale(torch.ones(1))
    parts["history"].epochs[0] = EpochRecord(1, 1 / 3, 0.1 + 0.2, 5e-324, None, 1.0, 2.5, 1e300)
    new(tmp_path).save(parts, now=True)
    wanted = digest(parts)
    fresh = {
        **make(seed=1), "scaler": torch.amp.GradScaler("cpu"), "history": History(), "log": Lines()
    }  # fmt: skip
    loaded = new(tmp_path)
    assert loaded.load() and loaded.source == tmp_path / LAST and loaded.warnings == []
    loaded.restore(fresh)
    assert digest(fresh) == wanted


def test_history_of_a_real_run_comes_back_to_the_last_bit(tmp_path):
    values = np.random.default_rng(0).standard_normal((2352, 2)).tolist()
    history = History(steps=[StepRecord(step, *pair) for step, pair in enumerate(values)])
    new(tmp_path).save({"history": history}, now=True)
    loaded, back = new(tmp_path), History()
    loaded.load()
    loaded.restore({"history": back})
    assert back == history


def test_notes_are_there_before_the_network_is(tmp_path):
    first = new(tmp_path)
    first.notes["lr_max"] = 1 / 3
    first.save({}, now=True)
    second = new(tmp_path)
    assert second.load() and second.notes == {"lr_max": 1 / 3}
    second.save({}, now=True)
    third = new(tmp_path)
    assert third.load() and third.notes == {"lr_max": 1 / 3}


def test_nothing_there_is_a_fresh_start_and_restoring_it_changes_nothing(tmp_path):
    parts, fresh = make(), new(tmp_path / "none")
    before = digest(parts)
    assert not fresh.load("auto") and not fresh.load("never") and fresh.source is None
    fresh.restore(parts)
    assert digest(parts) == before and not (tmp_path / "none").exists()


def test_never_leaves_what_is_there(saved):
    before, fresh = contents(saved), new(saved)
    assert not fresh.load("never") and contents(saved) == before


def test_a_file_is_restored_once(saved):
    parts, loaded = loop_parts(), new(saved, extra={"log": Lines()})
    loaded.load()
    loaded.restore(parts)
    with torch.no_grad():
        parts["model"][0].weight.zero_()
    loaded.restore(parts)  # what was trained since is not taken back
    assert not parts["model"][0].weight.any()


def test_a_named_file_anywhere_is_taken(saved, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    copied = (saved / PREVIOUS).rename(tmp_path / "elsewhere" / "mine.ckpt")
    loaded = new(saved)
    assert loaded.load(copied) and loaded.source == copied
    assert loaded.load(str(copied))


# Damaged, foreign and hostile files


def test_no_damaged_file_is_loaded_and_the_one_before_is_taken(saved):
    content, rng = (saved / LAST).read_bytes(), random.Random(0)
    spoilt = [content[:n] for n in (0, 1, 7, 8, 39, 40, 41, len(content) // 2, len(content) - 1)]
    bits = rng.sample(range(8 * len(content)), 1000)
    for bit in bits + list(range(8 * HEADER)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        spoilt.append(bytes(changed))
    spoilt += [damage(content, rng) for _ in range(200)]
    parts = make(seed=3)
    before = digest(parts)
    for count, value in enumerate(spoilt):
        if value == content:
            continue
        (saved / LAST).write_bytes(value)
        loaded = new(saved)
        with pytest.raises(CheckpointError):
            loaded.load(saved / LAST)
        loaded.restore(parts)
        if count > 30 and count % 8:  # a whole load takes a few ms
            continue
        assert loaded.load("auto") and loaded.source == saved / PREVIOUS
        (warning,) = loaded.warnings
        assert LAST in warning and PREVIOUS in warning
    assert digest(parts) == before


@pytest.mark.parametrize("name", foreign())
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name):
    file = tmp_path / LAST
    content = foreign()[name]
    file.write_bytes(content)
    found = (
        "holds something else"
        if content.startswith(checkpoint.file._MAGIC)
        else "is not a checkpoint"
    )
    for which in (file, "auto"):  # with "auto" too: never silently fresh
        with pytest.raises(CheckpointError, match=f"{LAST} {found}"):
            new(tmp_path).load(which)


def test_a_folder_and_a_missing_file_are_refused_by_name(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder", "missing.ckpt"):
        with pytest.raises(CheckpointError, match=name):
            new(tmp_path).load(tmp_path / name)


@pytest.mark.parametrize("place", ["all", "notes", "model", "legacy", "pickle"])
def test_code_in_a_file_with_the_right_digest_is_never_run(saved, tmp_path, place):
    marker = tmp_path / "ran"
    state = opened((saved / LAST).read_bytes())
    if place == "notes":
        state["notes"]["x"] = Evil(marker)
    elif place == "model":
        state["parts"]["model"]["0.weight"] = Evil(marker)
    else:
        state = Evil(marker)
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=place != "legacy")
    value = pickle.dumps(state) if place == "pickle" else stream.getvalue()
    (saved / LAST).write_bytes(sealed(value))
    with pytest.raises(CheckpointError):
        new(saved).load(saved / LAST)
    fallen_back = new(saved)
    assert fallen_back.load("auto") and fallen_back.source == saved / PREVIOUS
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()  # it would have


def test_both_damaged_is_an_error_and_never_a_fresh_start(saved):
    for name in (LAST, PREVIOUS):
        (saved / name).write_bytes((saved / name).read_bytes()[:-1])
    before = contents(saved)
    with pytest.raises(CheckpointError, match=f"(?s){LAST}.*{PREVIOUS}"):
        new(saved).load()
    assert contents(saved) == before


def test_a_damaged_file_does_not_take_the_place_of_a_whole_one(saved):
    (saved / LAST).write_bytes(b"damaged")
    whole = (saved / PREVIOUS).read_bytes()
    going_on = new(saved)
    assert going_on.load()
    going_on.save({}, now=True)
    assert (saved / PREVIOUS).read_bytes() == whole
    new_last = (saved / LAST).read_bytes()
    going_on.save({}, now=True)
    assert (saved / PREVIOUS).read_bytes() == new_last


# What does not fit


def content_with(change):
    """A whole file whose state was changed."""

    def write(folder):
        state = opened((folder / LAST).read_bytes())
        change(state["parts"])
        (folder / LAST).write_bytes(sealed(state))

    return write


def put(value, *path):
    def change(parts):
        for key in path[:-1]:
            parts = parts[key]
        if value is None:
            del parts[path[-1]]
        else:
            parts[path[-1]] = value

    return content_with(change)


WEIGHT = ("model", "0.weight")
SPOILT_STATES = {
    "missing weight": (put(None, *WEIGHT), "model.0.weight is only here"),
    "extra weight": (put(torch.ones(1), "model", "0.more"), "model.0.more is only in the file"),
    "shape": (put(torch.ones(2, 3, 3, 2), *WEIGHT), r"model.0.weight is float32 \(2, 3, 3, 2\)"),
    "dtype": (put(torch.ones(2, 3, 3, 3).double(), *WEIGHT), "model.0.weight is float64"),
    "no tensor": (put("x", *WEIGHT), "model.0.weight"),
    "sparse": (put(torch.ones(2, 3, 3, 3).to_sparse(), *WEIGHT), "model.0.weight"),
    "NaN": (put(torch.full((2, 3, 3, 3), torch.nan), *WEIGHT), "model.0.weight .* not finite"),
    "Inf in BN": (put(torch.full((2,), torch.inf), "model", "1.running_var"), "1.running_var"),
    "moment's shape": (put(torch.ones(3), "optimizer", "state", 0, "exp_avg"), "optimizer.0"),
    "moment's value": (
        put(torch.full((2,), -torch.inf), "optimizer", "state", 1, "exp_avg"), "optimizer",
    ),
    "groups": (put([], "optimizer", "param_groups"), "param"),
    "history": (put({"epochs": 3}, "history"), "does not fit"),
    "loss": (put([torch.nan], "history", "losses"), "history.losses is nan"),
    "generator": (put(torch.zeros(3, dtype=torch.uint8), "random", "torch"), "does not fit"),
    "part": (put(None, "scheduler"), "scheduler"),
}  # fmt: skip


def assert_refused(folder, parts, message, log=None):
    extra = {"log": Lines()} if log is None else {"log": log}
    loaded = new(folder, extra=extra)
    assert loaded.load(folder / LAST)
    train_some(parts)
    before = digest(parts)
    with pytest.raises(CheckpointError, match=message):
        loaded.restore(parts)
    assert digest(parts) == before


def train_some(parts):
    """So that there is something to be lost."""
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4) % 2
    nn.functional.cross_entropy(parts["model"](images), labels).backward()
    parts["optimizer"].step()


@pytest.mark.parametrize("name", SPOILT_STATES)
def test_a_state_that_does_not_fit_changes_nothing(saved, name):
    change, message = SPOILT_STATES[name]
    change(saved)
    assert_refused(saved, loop_parts(seed=1), message)


def test_another_architecture_is_refused_with_its_first_three_differences(saved):
    assert_refused(
        saved, loop_parts(width=3), r"0.weight.*\(2, .*\(3, .*0.bias.*1.weight.*and \d+ more"
    )


def test_other_parts_are_refused(saved):
    parts = loop_parts()
    parts["optimizer"] = torch.optim.SGD(parts["model"].parameters(), lr=0.1)
    assert_refused(saved, parts, "optimizer is 'Adam' in the file and 'SGD' here")
    parts = loop_parts()
    del parts["scheduler"]
    assert_refused(saved, parts, "scheduler is only in the file")
    assert_refused(saved, {**loop_parts(), "ema": make()["model"]}, "ema is only here")


def test_a_part_that_fails_at_the_end_leaves_all_others_as_they_were(saved):
    class Strict(Lines):
        def load_state_dict(self, state):
            if state["lines"]:
                raise RuntimeError("I take no lines")

    Strict.__name__ = "Lines"
    assert_refused(saved, loop_parts(seed=1), "I take no lines", log=Strict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {**IDENTITY["recipe"], "epochs": 3}}, "recipe.epochs is 2 .* and 3 here"),
        ({"recipe": {**IDENTITY["recipe"], "seed": 1}}, "recipe.seed is 0 .* and 1 here"),
        ({"recipe": {**IDENTITY["recipe"], "betas": (0.9, 0.99)}}, r"betas is \[0.9, 0.999\]"),
        ({"recipe": {"epochs": 2}}, "recipe.seed is only in the file"),
        ({"data": "other"}, "data is 'digest' in the file and 'other' here"),
        ({"batch_size": 4}, "batch_size is only here"),
    ],
)
def test_another_run_is_refused_with_key_and_both_values(saved, change, message):
    before = contents(saved)
    for which in ("auto", saved / PREVIOUS):
        with pytest.raises(CheckpointError, match=message):
            new(saved, identity={**IDENTITY, **change}).load(which)
    assert contents(saved) == before


def test_another_environment_is_one_warning(saved):
    other = new(saved, environment={"threads": 2, "torch": "2.16.0"}, extra={"log": Lines()})
    assert other.load()
    (warning,) = other.warnings
    assert "not bit-exact" in warning and "threads is 1 in the file and 2 here" in warning
    assert "2.16.0" in warning
    other.restore(loop_parts())


def test_number_format_may_change_between_two_machines(tmp_path):
    # float16's loss scaling is off in bfloat16, and the other way round.
    for there, here in ((True, False), (False, True)):
        scaler = torch.amp.GradScaler("cpu", enabled=there, init_scale=4.0)
        new(tmp_path).save({"scaler": scaler}, now=True)
        loaded, other = new(tmp_path), torch.amp.GradScaler("cpu", enabled=here, init_scale=8.0)
        loaded.load()
        loaded.restore({"scaler": other})
        assert other.get_scale() == (8.0 if here else 1.0)


# Saving


def test_saves_when_it_is_time_or_now(tmp_path):
    now = iter([0.0, 599.9, 600.0, 600.0, 1199.0, 1199.5, 1200.0, 1200.0]).__next__
    saving, written = new(tmp_path, clock=now), []
    for force in (False, False, False, True, False):
        before = contents(tmp_path)
        saving.notes["call"] = len(written)
        saving.save({}, now=force)
        written.append(contents(tmp_path) != before)
    # At 599.9, 600.0, 1199.0, at once, and 1200.0 s: the last one is soon after the one before.
    assert written == [False, True, False, True, False]


def test_ends_of_short_epochs_are_not_all_saved(tmp_path):
    # A save takes as long as an epoch on a fast GPU.
    now = iter([0.0, 9.9, 10.0, 10.0, 10.4, 10.4, 20.5, 20.5]).__next__
    saving, written = new(tmp_path, clock=now, every_s=600.0, epoch_every_s=10.0), []
    for when in ("epoch_end", "epoch_end", "epoch_end", "now", "epoch_end"):
        before = contents(tmp_path)
        saving.notes["call"] = len(written)
        saving.save({}, **{when: True})
        written.append(contents(tmp_path) != before)
    assert written == [False, True, False, True, True]


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_stop_at_an_epochs_end_and_the_last_epoch_are_saved_at_any_time(tmp_path, epochs):
    class Stopped(list):
        on_epoch = list.append

    parts, loader, stopped = make(epochs=epochs), Batches(), Stopped()
    fit(
        parts["model"], loader, loader.to_evaluate, parts["optimizer"], parts["scheduler"],
        nn.CrossEntropyLoss(), epochs=epochs, callbacks=[stopped],
        stop=lambda: epochs == 2 and bool(stopped),  # the last epoch needs no stop
        checkpoint=new(tmp_path, every_s=600.0, epoch_every_s=600.0),
    )  # fmt: skip
    assert len(stopped) == 1
    history = opened((tmp_path / LAST).read_bytes())["parts"]["history"]
    assert len(history["epochs"]) == 1 and len(history["lrs"]) == STEPS


@pytest.mark.parametrize("how", ["the same object", "a new one"])
def test_a_training_loop_goes_on_from_what_it_saved_though_nobody_loaded_it(tmp_path, how):
    def training(parts, saving, stop=lambda: False):
        return fit(
            parts["model"], Batches(), None, parts["optimizer"], parts["scheduler"],
            nn.CrossEntropyLoss(), epochs=EPOCHS, checkpoint=saving, stop=stop,
        )  # fmt: skip

    whole, stopped = make(), make()
    torch.manual_seed(5)
    training(whole, None)
    saving = new(tmp_path)
    torch.manual_seed(5)
    done = training(stopped, saving, stop_after(STEPS + 1))
    assert len(done.steps) == STEPS + 1
    if how == "a new one":
        stopped, saving = make(seed=1), new(tmp_path)
    assert len(training(stopped, saving).steps) == EPOCHS * STEPS
    weights = [parts["model"].state_dict() for parts in (whole, stopped)]
    for one, other in zip(*(state.values() for state in weights)):
        assert torch.equal(one, other)


def test_the_file_to_go_on_from_is_named(saved):
    assert new(saved).last is None  # nothing of it is loaded: a fresh start
    run = new(saved)
    (saved / LAST).write_bytes(b"")
    run.load()
    assert run.last == saved / PREVIOUS
    run.save({}, now=True)
    assert run.last == new(saved, write=False).last == saved / LAST
    (saved / LAST).unlink()
    assert run.last == saved / PREVIOUS


def test_how_an_optimizer_computes_its_steps_is_settled_by_this_machine(tmp_path):
    def adam(**options):
        weight = nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        made = torch.optim.Adam([weight], lr=0.1, **options)
        made.step()
        return made

    new(tmp_path).save({"optimizer": adam()}, now=True)
    loaded, fused = new(tmp_path), adam(fused=True)
    loaded.load()
    loaded.restore({"optimizer": fused})
    (group,) = fused.param_groups
    assert group["fused"] is True and group["lr"] == 0.1
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)  # it fails where the two disagree
    scaler.scale(torch.ones(()))
    scaler.step(fused)
    assert group["params"][0].isfinite().all()


def test_only_the_first_process_writes(saved):
    (saved / f".{LAST}.1.part").write_bytes(b"being written by the first process")
    before = contents(saved)
    reader = new(saved, write=False)
    assert reader.load()
    reader.save({}, now=True)
    reader.discard()
    assert contents(saved) == before


def test_old_temporary_files_go_and_a_finished_run_leaves_nothing(saved):
    (saved / f".{LAST}.1.part").write_bytes(b"of a run that was killed")
    (saved / "log.txt").write_text("stays")
    run = new(saved)
    run.load()
    assert sorted(contents(saved)) == [LAST, "log.txt", PREVIOUS]
    run.discard()
    assert sorted(contents(saved)) == ["log.txt"]
    run.discard()


def test_order_of_writing(saved, monkeypatch):
    run, calls = new(saved), []
    run.load()
    real_open, real_fsync, real_replace = open, os.fsync, os.replace

    def spy_open(file, mode):
        calls.append(("open", Path(file).name.split(".")[1]))
        assert Path(file).parent == saved  # os.replace is atomic within a file system only
        return real_open(file, mode)

    def spy_fsync(descriptor):
        kind = "folder" if os.path.samestat(os.fstat(descriptor), os.stat(saved)) else "file"
        calls.append(("fsync", kind))
        real_fsync(descriptor)

    def spy_replace(source, target):
        calls.append(("replace", Path(target).name))
        real_replace(source, target)

    monkeypatch.setattr(checkpoint.file, "open", spy_open, raising=False)
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    run.save({}, now=True)
    assert calls == [
        ("open", "last"), ("fsync", "file"), ("replace", PREVIOUS), ("replace", LAST),
        ("fsync", "folder"),
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["weight", "buffer", "moment", "loss"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_never_gets_into_a_file(saved, place, value):
    parts = loop_parts()
    train_some(parts)
    if place == "loss":
        parts["history"].steps.append(StepRecord(0, 0.1, value))
    else:
        state = parts["optimizer"].state_dict()["state"]
        tensors = {
            "weight": parts["model"][4].weight, "buffer": parts["model"][1].running_mean,
            "moment": state[3]["exp_avg_sq"],
        }  # fmt: skip
        with torch.no_grad():
            tensors[place].view(-1)[-1] = value
    run = new(saved)
    run.load()
    before = contents(saved)
    with pytest.raises(DivergedError, match="not saved"):
        run.save(parts, now=True)
    assert contents(saved) == before


@pytest.mark.parametrize(("at", "epoch"), [(1, 1), (3, 1), (7, 2)])
def test_a_save_that_is_refused_says_where_the_run_is(tmp_path, at, epoch):
    parts = make()

    def spoil(step, images):
        if step == at:
            parts["model"][1].running_mean[0] = torch.nan
        return images

    said = (
        f"1.running_mean .*not saved.* in epoch {epoch}, step {at}, at rate .*; the losses before"
    )
    with pytest.raises(DivergedError, match=f"{said}: [0-9.]+.*; lower lr_max"):
        train(parts, tmp_path, spoil=spoil)
    assert train(make(), tmp_path)[1].seen[0] == ((at // STEPS) + 1, at % STEPS)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="notes.when"):
        run = new(tmp_path)
        run.notes["when"] = object()
        run.save({}, now=True)
    assert contents(tmp_path) == {}
    run.notes = {"a": np.float64(0.5), "b": (np.int64(3), [True, None])}
    run.save({}, now=True)
    back = new(tmp_path)
    assert back.load() and back.notes == {"a": 0.5, "b": (3, [True, None])}


# Storage that fails


def assert_still_whole(folder, before):
    names = set(contents(folder))
    assert not any(name.endswith(".part") for name in names)
    back = new(folder)
    assert back.load() and back.warnings == []
    assert back.source.read_bytes() == before


def failing(function, number, reason=errno.EIO):
    calls = iter(range(100))

    def call(*args):
        if next(calls) == number:
            raise OSError(reason, os.strerror(reason))
        return function(*args)

    return call


@pytest.mark.parametrize(("name", "number"), [("fsync", 0), ("replace", 0), ("replace", 1)])
def test_a_write_that_fails_leaves_the_one_before(saved, monkeypatch, name, number):
    run = new(saved)
    run.load()
    before = (saved / LAST).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing(getattr(os, name), number))
        with pytest.raises(StorageError, match=rf"{saved}/{LAST} .*MB needed.*MB free.*Input"):
            run.save({}, now=True)
    assert_still_whole(saved, before)
    run.notes["n"] = 1
    run.save({}, now=True)  # and it works again once the storage does
    again = new(saved)
    assert again.load() and again.notes == {"n": 1}


def test_a_folder_without_fsync_is_no_error(saved, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(os.fsync, 1, errno.EINVAL))
    new(saved).save({}, now=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_leaves_the_one_before(saved):
    run = new(saved)
    run.load()
    before = (saved / LAST).read_bytes()
    (saved / f".{LAST}.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device"):
        run.save(make(), now=True)
    assert_still_whole(saved, before)


def test_a_limit_on_file_sizes_leaves_the_one_before(saved):
    before = (saved / LAST).read_bytes()

    def child():
        run = new(saved)
        run.load()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(StorageError, match="File too large"):
            run.save(make(), now=True)

    assert in_child(child) == 0
    assert_still_whole(saved, before)


def test_a_file_in_place_of_the_folder_is_a_storage_error(tmp_path):
    (tmp_path / "run").write_text("I am a file")
    with pytest.raises(StorageError, match=str(tmp_path / "run")):
        new(tmp_path / "run").save({}, now=True)
    with pytest.raises(StorageError):
        new(tmp_path / "run" / "below").save({}, now=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_a_storage_error(saved):
    saved.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        new(saved).save({}, now=True)


def test_a_missing_folder_is_made(tmp_path):
    new(tmp_path / "a" / "b").save({}, now=True)
    assert new(tmp_path / "a" / "b").load()


# Killed


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_inside_a_save_ends_like_one_that_was_not(tmp_path, whole_run, point):
    def killed():
        kill_at(point, 3)
        train(make(), tmp_path)

    def resumed():
        parts = make(seed=8)
        _, loader = train(parts, tmp_path)
        steps_lost = EPOCHS * STEPS - len(loader.seen)
        assert steps_lost == (3 if point == "after-replace" else 2)
        assert digest(parts) == whole_run[0]

    assert in_child(killed) == -signal.SIGKILL
    names = set(contents(tmp_path)) - {LAST, PREVIOUS}
    assert bool(names) == (point in ("mid-write", "before-replace", "between"))
    assert in_child(resumed) == 0
    assert set(contents(tmp_path)) == {LAST, PREVIOUS}


# The whole project


def test_one_single_place_reads_pickles_and_only_tensors_and_plain_data():
    folders = [ROOT / name for name in ("onecycle", "models", "scripts")]
    files = [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    loads = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
            if isinstance(node, ast.Call):
                call, name = ast.unparse(node), ast.unparse(node.func)
                if name in ("torch.load", "torch.jit.load", "torch.hub.load"):
                    loads.append((file.name, call))
                assert "allow_pickle=True" not in call
    assert loads == [("file.py", "torch.load(stream, weights_only=True)")]
