"""What goes wrong around a run from the command line: each ends in one line and a true code."""

import csv
import errno
import gc
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_network import STEPS, WORDS, Tiny, make_quick
from torch import nn

from onecycle import commands, errors
from onecycle.commands import images
from onecycle.commands import train as train_command
from onecycle.data.digits import load_digits
from onecycle.files import lock_folder
from onecycle.training import checkpoint
from onecycle.training.group import Group
from onecycle.training.progress import TrainingLog

ROOT = Path(__file__).resolve().parents[2]


def train(*words):
    """The exit code of a training with more options."""
    return commands.main([*WORDS, *words])


@pytest.fixture
def tiny(monkeypatch):
    """Networks of the runs are tiny; to be called with what is to happen at which step from 1."""
    make_quick(monkeypatch)

    def arrange(at, fault):
        monkeypatch.setattr(Tiny, "at", at)
        monkeypatch.setattr(Tiny, "fault", staticmethod(fault))

    return arrange


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        assert train("--out", str(out)) == 0
    return out


def no_images(*_):
    raise AssertionError("images were loaded first")


def lines(captured):
    return captured.err.strip().splitlines()


def files(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def same_numbers(one, other):
    return all((one / name).read_bytes() == (other / name).read_bytes()
               for name in ("steps.csv", "model.safetensors"))  # fmt: skip


def log_of(folder):
    """Without the clock's seconds, and without name and date."""
    text = re.sub(r"[\d.]+ s\b", "", (folder / "log.txt").read_text("utf-8"))
    return re.sub(r".*, begun [^,]*", "", text).splitlines()


def send(number):
    os.kill(os.getpid(), number)
    return 1.0


@pytest.mark.parametrize(
    ("number", "code", "at"), [(signal.SIGTERM, 143, 6), (signal.SIGINT, 130, 8)]
)
def test_a_run_that_a_signal_stopped_goes_on_to_the_same_end(
    tiny, whole, tmp_path, capsys, number, code, at
):
    out = tmp_path / "run"
    tiny(at, lambda: send(number))
    assert train("--out", str(out)) == code
    said = lines(capsys.readouterr())[-1]
    assert f"after {at} of {STEPS} steps; resume with the same command and --out {out}" in said
    assert (out / checkpoint.LAST).exists() and not (out / "results.json").exists()
    tiny(None, None)
    assert train("--out", str(out)) == 0
    assert f"resuming from {out / checkpoint.LAST}" in capsys.readouterr().out
    assert same_numbers(out, whole)
    assert log_of(out) == log_of(whole)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    assert not list(out.glob("*.ckpt"))


def test_after_a_stop_the_command_that_goes_on_is_told_without_a_fresh_start(
    tiny, tmp_path, capsys
):
    tiny(6, lambda: send(signal.SIGTERM))
    assert train("--out", str(tmp_path), "--resume", "never") == 143
    said = lines(capsys.readouterr())[-1]
    assert said.endswith(f"resume with the same command and --out {tmp_path} without --resume")


def test_a_second_ctrl_c_ends_at_once_with_130(tiny, tmp_path, capsys):
    tiny(6, lambda: send(signal.SIGINT) * send(signal.SIGINT))
    assert train("--out", str(tmp_path)) == 130
    assert lines(capsys.readouterr())[-1].endswith(f"interrupted; checkpoint kept in {tmp_path}")
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.LAST, checkpoint.PREVIOUS}


@pytest.fixture
def stopped(tiny, tmp_path, capsys):
    """The folder of a run that was stopped after 6 steps."""
    tiny(6, lambda: send(signal.SIGTERM))
    assert train("--out", str(tmp_path / "run")) == 143
    tiny(None, None)
    capsys.readouterr()
    return tmp_path / "run"


def test_resuming_is_refused_or_left_out_as_asked(stopped, whole, monkeypatch, tmp_path, capsys):
    before = files(stopped)
    for given, found in (
        (["--lr-max", "0.02"], "recipe.lr_max is 0.01 in the file and 0.02 here"),
        (["--limit-test", "19"], "data.num_test is 20 in the file and 19 here"),
        (["--resume", str(tmp_path / "none.ckpt")], f"{tmp_path / 'none.ckpt'} does not exist"),
    ):
        assert train(*given, "--out", str(stopped)) == 4
        (line,) = lines(capsys.readouterr())
        assert found in line
        assert files(stopped) == before

    def other_digits():
        images, test = load_digits()
        images.data[:] = images.data[:, ::-1].copy()  # of the same mean
        return images, test

    with monkeypatch.context() as patch:
        patch.setattr("onecycle.data.digits.load_digits", other_digits)
        assert train("--out", str(stopped)) == 4
    (line,) = lines(capsys.readouterr())
    assert "data.sha256 is" in line
    file = stopped / checkpoint.LAST
    assert train("--resume", str(file), "--out", str(tmp_path / "other")) == 0
    assert f"resuming from {file}" in capsys.readouterr().out
    assert same_numbers(tmp_path / "other", whole)
    assert train("--resume", "never", "--out", str(stopped)) == 0
    assert f"new run in {stopped}" in capsys.readouterr().err
    assert same_numbers(stopped, whole)


def test_a_group_that_has_fewer_steps_an_epoch_does_not_go_on(tiny, monkeypatch, tmp_path, capsys):
    class Two(Group):
        def sum(self, tensor, *what):
            return 2 * tensor

        def same(self, value):
            return value

        def compare(self, values):
            pass

    @contextmanager
    def group(device, **options):
        yield Two(device, 0, 2)

    # One process trains on the last two images, two of them would have one each.
    arguments = ["--limit-train", "66", "--out", str(tmp_path)]
    tiny(6, lambda: send(signal.SIGTERM))
    assert train(*arguments) == 143
    monkeypatch.setattr("onecycle.training.joining.join_group", group)
    assert train(*arguments) == 4
    assert "steps_per_epoch is 5 in the file and 4 here" in lines(capsys.readouterr())[-1]


def test_damaged_checkpoints_are_never_a_fresh_start(stopped, capsys):
    for file in stopped.glob("*.ckpt"):
        file.write_bytes(file.read_bytes()[:-1])
    before = files(stopped)
    assert train("--out", str(stopped)) == 4
    (line,) = lines(capsys.readouterr())
    assert "last.ckpt is damaged" in line and "previous.ckpt is damaged" in line
    assert files(stopped) == before


def test_a_finished_run_is_complete_and_not_overwritten(tiny, whole, capsys):
    before = files(whole)
    assert train("--out", str(whole)) == 0
    assert "already complete (3 of 3 epochs)" in capsys.readouterr().out
    for other in (["--seed", "1"], ["--limit-train", "60"], ["--resume", "never"]):
        assert train(*other, "--out", str(whole)) == 6
        assert "finished run already; name another folder" in capsys.readouterr().err
    assert files(whole) == before


def test_a_finished_run_from_before_a_field_of_the_recipe_came_is_complete_too(tiny, whole, capsys):
    file = whole / "results.json"
    content = file.read_text("utf-8")
    results = json.loads(content)
    del results["recipe"]["beta1_at_peak"]
    file.write_text(json.dumps(results), "utf-8")
    try:
        assert train("--out", str(whole)) == 0
    finally:
        file.write_text(content, "utf-8")
    assert "already complete (3 of 3 epochs)" in capsys.readouterr().out


def test_a_second_run_in_the_folder_is_refused_before_images_are_loaded(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(images, "load_images", no_images)
    with lock_folder(tmp_path):
        assert train("--out", str(tmp_path)) == 6
    (line,) = lines(capsys.readouterr())
    assert f"{tmp_path} is in use by process {os.getpid()}" in line


def test_a_folder_that_cannot_be_written_is_told_before_images_are_loaded(
    monkeypatch, tmp_path, capsys
):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(images, "load_images", no_images)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert train("--out", str(tmp_path)) == 6
    (line,) = lines(capsys.readouterr())
    assert f"cannot write to {tmp_path}: No space left" in line


def test_a_disk_that_fills_while_training_ends_with_the_last_state_kept(
    tiny, monkeypatch, tmp_path, capsys
):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    tiny(6, lambda: monkeypatch.setattr(os, "fsync", full) or 1.0)
    assert train("--out", str(tmp_path)) == 6
    assert "No space left on device; make room" in lines(capsys.readouterr())[-1]
    assert (tmp_path / checkpoint.LAST).exists()
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.LAST, checkpoint.PREVIOUS}


@pytest.mark.parametrize(("at", "kept"), [(1, False), (7, True)])
def test_divergence_is_code_5_and_names_what_is_kept(tiny, tmp_path, capsys, at, kept):
    tiny(at, lambda: float("nan"))
    assert train("--out", str(tmp_path)) == 5
    line = lines(capsys.readouterr())[-1]
    assert f"epoch {(at + 3) // 4}, step {at - 1}, at rate" in line
    expected = f"the last good state is {tmp_path / checkpoint.LAST}"
    assert (expected if kept else "nothing was saved before") in line
    assert (tmp_path / checkpoint.LAST).exists() == kept


@pytest.mark.parametrize(
    ("name", "code"),
    [("UsageError", 2), ("DataError", 3), ("CheckpointError", 4), ("DivergedError", 5),
     ("StorageError", 6), ("WorkerError", 7)],
)  # fmt: skip
def test_every_error_has_its_exit_code(monkeypatch, tmp_path, capsys, name, code):
    def fail(*_):
        raise getattr(errors, name)("what, and the way out")

    monkeypatch.setattr(train_command, "train", fail)
    assert train("--out", str(tmp_path / "run")) == code
    (line,) = lines(capsys.readouterr())
    assert line.endswith(": what, and the way out") and not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("outcome", "code"),
    [(0, 0), (143, 143), (errors.DivergedError("it diverged"), 5), (KeyError("a bug"), 1),
     (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), 7)],
    ids=str,
)  # fmt: skip
def test_the_first_of_several_processes_writes_how_the_run_ended(
    monkeypatch, tmp_path, outcome, code, rank
):
    class Two(Group):
        def compare(self, values):
            pass

    @contextmanager
    def group(device, **options):
        yield Two(device, rank, 2)

    def end(*_):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("onecycle.training.joining.join_group", group)
    monkeypatch.setattr(train_command, "train", end)
    arguments = ["--out", str(tmp_path)]
    if isinstance(outcome, KeyError):
        with pytest.raises(KeyError):
            train(*arguments)
    else:
        assert train(*arguments) == code
    status = [json.loads(path.read_text("utf-8")) for path in tmp_path.iterdir()]
    # Another process speaks only where the first one may be gone, and not over its words.
    speaks = rank == 0 or code == 7
    assert [each["exit_code"] for each in status] == ([code] if speaks else [])
    if rank == 0:
        assert bool(status[0]["message"]) == isinstance(outcome, Exception)


IN_CHILD = """
import sys
asked = []
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        asked.append(f"{event} {arguments}")
sys.addaudithook(note)
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/commands"]
import pytest, tiny_network
from onecycle import commands
tiny_network.make_quick(pytest.MonkeyPatch())
code = commands.main(sys.argv[2:])
assert not asked, asked
sys.exit(code)
"""


def start(folder, *arguments, **options):
    """A run by a Python of its own, without HOME and in the narrowest of locales."""
    environment = {
        "PATH": os.environ["PATH"], "LC_ALL": "C", "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", IN_CHILD, str(ROOT), *WORDS, *arguments],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def test_without_home_network_and_ascii_a_run_ends_well(tmp_path):
    here = tmp_path / "Ünï 数 it's"
    here.mkdir()
    options = ["--epochs", "1", "--augmentation", "albumentations", "--out", "Läufe/数字"]
    child = start(here, *options, stdout=subprocess.DEVNULL)
    _, error = child.communicate(timeout=300)
    assert child.returncode == 0, error.decode()
    with open(here / "Läufe" / "数字" / "steps.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == STEPS // 3


@pytest.mark.parametrize("kind", ["closed", "full"])
def test_a_training_goes_on_where_nobody_reads_what_it_says(tmp_path, kind):
    if kind == "full":
        with open("/dev/full", "w") as full:
            child = start(tmp_path, "--out", "run", stdout=full)
    else:
        child = start(tmp_path, "--out", "run", stdout=subprocess.PIPE)
        child.stdout.readline()
        child.stdout.close()  # what head -1 does
    error = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(300) == 0, error
    assert "Traceback" not in error and "Exception ignored" not in error
    assert error.count("standard output cannot be written") == 1
    log = (tmp_path / "run" / "log.txt").read_text("utf-8")
    assert "EPOCH = 3" in log and (tmp_path / "run" / "results.json").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="not on Windows")
def test_a_closed_terminal_saves_and_the_same_command_resumes(tmp_path):
    child = start(tmp_path, "--out", "run", "--epochs", "200", stdout=subprocess.PIPE)
    while b"EPOCH = 1" not in child.stdout.readline():
        pass
    child.send_signal(signal.SIGHUP)
    child.stdout.read()
    error = child.stderr.read().decode()
    assert child.wait(300) == 128 + signal.SIGHUP, error
    assert "resume with the same command" in error
    assert list((tmp_path / "run").glob("*.ckpt"))


@pytest.mark.parametrize("name", ["b" * 300, "file/below"])
def test_a_folder_that_no_system_takes_is_one_line(tiny, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert commands.main([*WORDS, "--out", name]) in (2, 6)
    assert capsys.readouterr().err.count("\n") == 1


def test_twenty_epochs_leave_nothing_behind(tiny, monkeypatch, tmp_path):
    used = []

    def measure():
        gc.collect()
        used.append((
            len(os.listdir("/proc/self/fd")),
            len(multiprocessing.active_children()),
            sum(type(each) in (torch.Tensor, nn.Parameter) for each in gc.get_objects()),
        ))  # fmt: skip

    original = TrainingLog.on_epoch

    def on_epoch(log, record):
        original(log, record)
        if record.epoch in (3, 10, 20):
            measure()

    monkeypatch.setattr(TrainingLog, "on_epoch", on_epoch)
    options = ["--epochs", "20", "--limit-train", "32", "--save-minutes", "9"]
    assert train(*options, "--out", str(tmp_path / "run")) == 0
    assert len(used) == 3 and len(set(used)) == 1, used


def test_a_full_disk_of_the_curves_is_one_line(tiny, monkeypatch, tmp_path, capsys):
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer").RecordWriter

    def no_room(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "write", no_room)
    tiny(None, None)
    assert train("--tensorboard", "--out", str(tmp_path)) == 6
    said = capsys.readouterr().err
    assert "Traceback" not in said and "train without --tensorboard" in said
    # It may be told at the end only, when all else is written.
    assert any((tmp_path / name).exists() for name in ("last.ckpt", "results.json"))
