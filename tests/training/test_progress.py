import contextlib
import io
import re
import sys
from itertools import groupby

import numpy as np
import pytest
from tqdm import std as tqdm_std

from onecycle.records import EpochRecord, StepRecord
from onecycle.training import progress
from onecycle.training.progress import Estimate, TrainingLog, Watched, progress_bar


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
    monkeypatch.setattr(progress, "clock", lambda: Clock.now)
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


class Terminal(io.StringIO):
    def isatty(self):
        return True


@contextlib.contextmanager
def terminal():
    """Both streams as one text, as a person sees them."""
    stream = Terminal()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield stream


def terminal_of(monkeypatch):
    """Standard error as a terminal; gives what was written. A fixture would come before pytest's."""
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    return stream.getvalue


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


def test_bars_go_to_standard_error_and_lines_to_standard_output(clock, capsys, monkeypatch):
    screen_err = terminal_of(monkeypatch)
    log = TrainingLog(4, 100)
    train(log, epochs=1, steps=4, clock=clock)
    assert capsys.readouterr().out == "\n".join([*log.lines, ""])
    assert percentages(screen_err()) and screen(screen_err()) == [""]


def test_without_a_terminal_no_bar_is_drawn_but_a_line_per_minute(clock, capsys):
    log = TrainingLog(100, 100)
    train(log, epochs=1, steps=100, clock=clock)  # 200 seconds
    with progress_bar("range test") as move:
        for done in range(1, 101):
            clock.now += 2
            move(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and not any("\r" in line or "%|" in line for line in lines)
    assert lines[0].endswith("step 31/100, 2 min left")
    assert lines[3] == "range test: step 30/100, 2 min left"


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
    clock, monkeypatch, every
):
    screen_err = terminal_of(monkeypatch)
    train(TrainingLog(10, 100), epochs=2, steps=10, clock=clock, every=every)
    shown = screen_err()
    told = [*range(10 * every, 100, 10 * every), 100]
    # With the first step that is reported, a bar appears; with each later one it moves.
    moves = [share for share, _ in groupby(percentages(shown)) if share > told[0]]
    assert moves == told[1:] * 2
    assert "EPOCH = 2 | Loss = 0.62 | Accuracy = 50.00" in shown
    if every < 3:
        assert f"step {told[1] // 10}/10" in shown
    assert "| evaluating" in shown


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


def test_progress_bar_moves_to_what_is_done_and_leaves_nothing_behind(clock, capsys, monkeypatch):
    screen_err = terminal_of(monkeypatch)
    with progress_bar("CIFAR-10") as move:
        assert "CIFAR-10" in screen_err()  # before anything is done
        for done in (0, 100, 250, 500, 750, 999):
            clock.now += 2
            move(done, 1000)
    assert not capsys.readouterr().out
    assert [share for share in percentages(screen_err()) if share] == [10, 25, 50, 75, 100]
    assert screen(screen_err()) == [""]


@pytest.mark.parametrize(
    "total, said",
    [(60_000, "images 30,000/60,000, 10 s left"), (170_000_000, "85/170 MB, 10 s left")],
)
def test_progress_bar_counts_in_plain_numbers_and_tells_the_time_left(
    clock, monkeypatch, total, said
):
    screen_err = terminal_of(monkeypatch)
    with progress_bar("loading images", "images") as move:
        for share in (0.1, 0.2, 0.3, 0.4, 0.5):
            clock.now += 2
            move(int(share * total), total)
    assert said in screen_err() and " 50%|" in screen_err()


def work(total, *, first_s=40.0, pause_every=0, seed=0):
    """When each step is done: the first is slow, the others vary, some pause."""
    seconds = np.random.default_rng(seed).uniform(0.5, 1.5, total)
    seconds[0] = first_s
    if pause_every:
        seconds[pause_every - 1 :: pause_every] += 0.3 * pause_every
    return seconds.cumsum()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pause_every", [0, 20])
def test_time_left_is_right_within_a_factor_of_two_after_a_twentieth(clock, seed, pause_every):
    times = work(400, pause_every=pause_every, seed=seed)
    estimate, begin = Estimate(), clock.now
    for done, at in enumerate(times, 1):
        clock.now = begin + at
        estimate.note(done)
        left = estimate.seconds_left(len(times))
        if done == 1:
            assert left is None  # the first step tells nothing
        if 20 <= done < 390:
            assert 0.5 < left / (times[-1] - at) < 2


def test_time_left_of_a_resumed_training_is_that_of_its_new_steps(clock):
    estimate = Estimate()
    for done in range(901, 951):
        clock.now += 3
        estimate.note(done)
    assert estimate.seconds_left(1000) == pytest.approx(150)


def test_watched_loader_gives_its_batches_and_keeps_its_methods(clock, monkeypatch):
    screen_err = terminal_of(monkeypatch)

    class Loader(list):
        def indices(self):
            return [7]

    batches = Loader([("a", [0, 1]), ("b", [2])])
    watched = Watched(batches, "evaluating", 3)
    assert watched.indices() == [7]
    assert list(watched) == batches
    assert "evaluating" in screen_err() and screen(screen_err()) == [""]


def test_progress_bar_goes_back_where_the_work_begins_again(clock, monkeypatch):
    screen_err = terminal_of(monkeypatch)
    with progress_bar("CIFAR-10") as move:
        for done in (25, 50, 75, 0, 20, 40):  # as where a mirror breaks off and the next begins
            clock.now += 2
            move(done, 100)
    shown = screen_err()
    seen = percentages(shown)
    assert seen[:4] == [0, 25, 50, 75] and seen[-2:] == [20, 40]
    assert screen(shown) == [""]


def test_progress_bar_leaves_nothing_behind_where_the_work_fails(clock, monkeypatch):
    screen_err = terminal_of(monkeypatch)
    with pytest.raises(ConnectionError), progress_bar("CIFAR-10") as move:
        clock.now += 2
        move(1, 2)
        raise ConnectionError
    assert percentages(screen_err()) == [0, 50] and screen(screen_err()) == [""]


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


def test_the_lines_of_a_resumed_run_are_shown_once():
    state = {"lines": ["header", "EPOCH = 1"], "last": ""}
    for written, shown in (
        ([], ["header", "EPOCH = 1"]),
        (["header"], ["header"]),
        (["other"], ["other", "header", "EPOCH = 1"]),
    ):
        stream = io.StringIO()
        log = TrainingLog(1, 50, stream=stream)
        for line in written:
            log.write(line)
        log.load_state_dict(state)
        assert log.lines == state["lines"]
        assert stream.getvalue().splitlines() == shown


def test_a_line_that_is_only_shown_is_not_kept():
    log = TrainingLog(1, 50, stream=(stream := io.StringIO()))
    log.show("resuming")
    assert stream.getvalue() == "resuming\n" and log.lines == []
