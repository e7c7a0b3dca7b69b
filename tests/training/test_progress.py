import contextlib
import io
import re
import sys

import pytest
from tqdm import std as tqdm_std

from onecycle.records import EpochRecord, StepRecord
from onecycle.training.progress import TrainingLog, progress_bar


def epoch_record(epoch=1, **measured):
    values = {
        "epoch": epoch, "lr": 0.01, "train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 0.12344,
        "test_accuracy": 0.9, "train_seconds": 12.34, "test_seconds": 1.0,
    }  # fmt: skip
    return EpochRecord(**values | measured)


@pytest.fixture
def clock(monkeypatch):
    """A clock for the bars, moved by its ``now``: they are drawn by time."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(tqdm_std, "time", lambda: Clock.now)
    # Its thread redraws slow bars by the real time.
    monkeypatch.setattr(tqdm_std.tqdm, "monitor_interval", 0)
    return Clock


def screen(text):
    """The rows that a terminal shows after ``text``: a carriage return goes back to overwrite."""
    rows = []
    for line in text.split("\n"):
        row = ""
        for piece in line.split("\r"):
            row = piece + row[len(piece) :]
        rows.append(row.rstrip())
    return rows


@contextlib.contextmanager
def terminal():
    """Both streams as one text, as a person sees them."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield stream


def percentages(text):
    return [int(share) for share in re.findall(r"(\d+)%\|", text)]


def train(log, *, epochs, steps, clock=None, every=1):
    """Call the log as the training loop does; every step takes two seconds."""
    for epoch in range(1, epochs + 1):
        for index in range(steps):
            if clock is not None:
                clock.now += 2
            if index == steps - 1 or (index + 1) % every == 0:
                number = (epoch - 1) * steps + index
                step = StepRecord(step=number, lr=0.01234567 * epoch, loss=1.2349 / epoch)
                log.on_step(epoch, step, (index + 1) / (2 * steps))
        log.on_epoch(epoch_record(epoch, test_accuracy=0.85 + 0.05 * epoch))


def test_epoch_has_a_line_of_its_last_step_a_line_of_the_test_set_and_a_blank():
    log = TrainingLog(3, 360, stream=io.StringIO())
    train(log, epochs=2, steps=3)
    expected = [
        "EPOCH = 1 | LR = 0.0123457 | Loss = 1.23 | Batch = 2 | Accuracy = 50.00",
        "Test images: Average loss: 0.1234, Accuracy: 324/360 (90.00%)",
        "",
        "EPOCH = 2 | LR = 0.0246913 | Loss = 0.62 | Batch = 2 | Accuracy = 50.00",
        "Test images: Average loss: 0.1234, Accuracy: 342/360 (95.00%)",
        "",
    ]
    assert [line.removesuffix(" | 12.3 s") for line in log.lines] == expected


def test_an_epoch_whose_steps_were_not_told_has_a_line_nonetheless():
    log = TrainingLog(4, 10, stream=io.StringIO())
    log.on_epoch(epoch_record(epoch=3))
    assert log.lines[0] == "EPOCH = 3 | Accuracy = 50.00 | 12.3 s"


def test_small_rate_is_not_rounded_away():
    log = TrainingLog(1, 10, stream=io.StringIO())
    log.on_step(1, StepRecord(step=0, lr=1.25e-7, loss=2.0), 0.5)
    log.on_epoch(epoch_record())
    assert float(re.search(r"LR = (\S+) \|", log.lines[0])[1]) == 1.25e-7


@pytest.mark.parametrize("total, stride", [(1, 1), (7, 1), (360, 1), (10_000, 37), (9_999, 101)])
def test_number_of_right_images_is_exact(total, stride):
    log = TrainingLog(1, total, stream=io.StringIO())
    for correct in (*range(0, total, stride), total):
        log.on_epoch(epoch_record(test_accuracy=correct / total))
        expected = f"Accuracy: {correct}/{total} ({100 * correct / total:.2f}%)"
        assert log.lines[-2] == f"Test images: Average loss: 0.1234, {expected}"


def test_images_that_are_not_the_test_set_are_called_by_their_name():
    log = TrainingLog(1, 50, test_name="Held-out training images", stream=io.StringIO())
    train(log, epochs=1, steps=1)
    assert log.lines[1].startswith("Held-out training images: Average loss: ")
    assert not any("Test" in line for line in log.lines)


@pytest.mark.parametrize("seconds_matter", [False, True], ids=["in no time", "slowly"])
def test_lines_are_what_stays_on_a_terminal(clock, seconds_matter):
    with terminal() as stream:
        log = TrainingLog(4, 100)
        log.write("CIFAR-10: 50,000 training images")
        log.write()
        train(log, epochs=3, steps=4, clock=clock if seconds_matter else None)
        log.write("Accuracy 90.00 %")
    assert len(log.lines) == 12
    assert screen(stream.getvalue()) == [*log.lines, ""]


def test_bars_go_to_standard_error_and_lines_to_standard_output(clock, capsys):
    log = TrainingLog(4, 100)
    train(log, epochs=1, steps=4, clock=clock)
    captured = capsys.readouterr()
    assert captured.out == "\n".join([*log.lines, ""])
    assert percentages(captured.err) and screen(captured.err) == [""]


def test_closed_standard_error_is_a_log_without_a_bar(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    log = TrainingLog(4, 100, stream=io.StringIO())
    train(log, epochs=1, steps=4, clock=clock)
    with progress_bar("range test") as move:
        move(1, 2)
    assert len(log.lines) == 3


# On a GPU only some of the steps are reported.
@pytest.mark.parametrize("every", [1, 2, 3])
def test_bar_shows_the_share_of_the_epoch_that_is_done_and_begins_anew_with_each(
    clock, capsys, every
):
    train(TrainingLog(10, 100), epochs=2, steps=10, clock=clock, every=every)
    shown = capsys.readouterr().err
    told = [*range(10 * every, 100, 10 * every), 100]
    # With the first step that is reported, a bar appears; with each later one it moves.
    moves = [share for share in percentages(shown) if share > told[0]]
    assert moves == told[1:] * 2
    batch = told[1] // 10 - 1
    assert f"EPOCH = 2 | LR = 0.0246913 | Loss = 0.62 | Batch = {batch} |" in shown


def test_a_line_in_the_middle_of_an_epoch_has_a_row_of_its_own(clock):
    with terminal() as stream:
        log = TrainingLog(4, 100)
        log.write("begun")
        for index in range(3):
            clock.now += 2
            log.on_step(1, StepRecord(step=index, lr=0.01, loss=2.0), 0.5)
            if index == 1:
                log.write("a line of the caller's")
        log.close()
        print("the loss is nan")
        log.close()
    assert percentages(stream.getvalue()) == [0, 50, 0]  # a new bar is drawn before it is moved
    assert screen(stream.getvalue()) == ["begun", "a line of the caller's", "the loss is nan", ""]


def test_line_reaches_the_stream_at_once():
    class Buffered(io.StringIO):
        flushed = ""

        def flush(self):
            self.flushed = self.getvalue()

    stream = Buffered()
    TrainingLog(1, 1, stream=stream).write("begun")
    assert stream.flushed == "begun\n"


def test_progress_bar_moves_to_what_is_done_and_leaves_nothing_behind(clock, capsys):
    with progress_bar("CIFAR-10") as move:
        for done in (0, 100, 250, 500, 750, 999):
            clock.now += 2
            move(done, 1000)
    captured = capsys.readouterr()
    assert "CIFAR-10:" in captured.err and not captured.out
    assert [share for share in percentages(captured.err) if share] == [10, 25, 50, 75, 100]
    assert screen(captured.err) == [""]


def test_progress_bar_has_no_numbers_in_a_unit_of_its_own(clock, capsys):
    with progress_bar("pictures") as move:
        for done in (1, 30_000):
            clock.now += 2
            move(done, 60_000)
    shown = capsys.readouterr().err
    assert " 50%|" in shown and "00:02<" in shown
    assert not re.search(r"60\.0k|60000|30\.0k", shown)


def test_progress_bar_goes_back_where_the_work_begins_again(clock, capsys):
    with progress_bar("CIFAR-10") as move:
        for done in (25, 50, 75, 0, 20, 40):  # as where a mirror breaks off and the next begins
            clock.now += 2
            move(done, 100)
    shown = capsys.readouterr().err
    seen = percentages(shown)
    assert seen[:3] == [25, 50, 75] and seen[-2:] == [20, 40]
    assert screen(shown) == [""]


def test_progress_bar_of_something_quick_is_never_shown(clock, capsys):
    with progress_bar("CIFAR-10") as move:
        for done in range(1, 6):
            clock.now += 0.1
            move(done, 5)
    shown = capsys.readouterr().err
    assert screen(shown) == [""] and not percentages(shown)


def test_progress_bar_leaves_nothing_behind_where_the_work_fails(clock, capsys):
    with pytest.raises(ConnectionError), progress_bar("CIFAR-10") as move:
        clock.now += 2
        move(1, 2)
        raise ConnectionError
    shown = capsys.readouterr().err
    assert percentages(shown) == [50] and screen(shown) == [""]


def test_an_epoch_without_test_images_has_one_line():
    log = TrainingLog(1, 0, stream=io.StringIO())
    log.on_step(1, StepRecord(0, 0.01, 1.5), 0.5)
    log.on_epoch(epoch_record(test_loss=None, test_accuracy=None))
    assert len(log.lines) == 2 and log.lines[0].endswith("12.3 s") and log.lines[1] == ""


def test_lines_survive_the_state():
    log, twin = TrainingLog(1, 50, stream=io.StringIO()), TrainingLog(1, 50, stream=io.StringIO())
    log.write("header")
    log.on_step(1, StepRecord(0, 0.01, 1.5), 0.5)
    twin.write("written before the state came")
    twin.load_state_dict(log.state_dict())
    twin.on_epoch(epoch_record())
    log.on_epoch(epoch_record())
    assert twin.lines == log.lines
