import contextlib
import io
import re

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
        "Test set: Average loss: 0.1234, Accuracy: 324/360 (90.00%)",
        "",
        "EPOCH = 2 | LR = 0.0246913 | Loss = 0.62 | Batch = 2 | Accuracy = 50.00",
        "Test set: Average loss: 0.1234, Accuracy: 342/360 (95.00%)",
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
        assert log.lines[-2] == f"Test set: Average loss: 0.1234, {expected}"


def test_images_that_are_not_the_test_set_are_called_by_their_name():
    log = TrainingLog(1, 50, test_name="Held-out training images", stream=io.StringIO())
    train(log, epochs=1, steps=1)
    assert log.lines[1].startswith("Held-out training images: Average loss: ")
    assert not any("Test" in line for line in log.lines)


@pytest.mark.parametrize("seconds_matter", [False, True], ids=["in no time", "slowly"])
def test_lines_are_what_stays_on_the_stream(clock, seconds_matter):
    stream = io.StringIO()
    log = TrainingLog(4, 100, stream=stream)
    log.write("CIFAR-10: 50,000 training images")
    log.write()
    train(log, epochs=3, steps=4, clock=clock if seconds_matter else None)
    log.write("Accuracy 90.00 %")
    assert len(log.lines) == 12
    assert screen(stream.getvalue()) == [*log.lines, ""]


# On a GPU only every twentieth step is told.
@pytest.mark.parametrize("every", [1, 2, 3])
def test_bar_shows_the_share_of_the_epoch_that_is_done_and_begins_anew_with_each(clock, every):
    stream = io.StringIO()
    log = TrainingLog(10, 100, stream=stream)
    train(log, epochs=2, steps=10, clock=clock, every=every)
    told = [*range(10 * every, 100, 10 * every), 100]
    # With the first step that is told, a bar appears; with each later one it moves.
    moves = [share for share in percentages(stream.getvalue()) if share > told[0]]
    assert moves == told[1:] * 2
    batch = told[1] // 10 - 1
    assert f"EPOCH = 2 | LR = 0.0246913 | Loss = 0.62 | Batch = {batch} |" in stream.getvalue()


def test_closed_in_the_middle_of_an_epoch_the_bar_leaves_its_row_to_the_next_line(clock):
    stream = io.StringIO()
    log = TrainingLog(4, 100, stream=stream)
    log.write("begun")
    for index in range(2):
        clock.now += 2
        log.on_step(1, StepRecord(step=index, lr=0.01, loss=2.0), 0.5)
    log.close()
    print("the loss is nan", file=stream)
    log.close()
    assert percentages(stream.getvalue()) == [0, 50]
    assert screen(stream.getvalue()) == ["begun", "the loss is nan", ""]


def test_without_a_stream_all_goes_to_standard_output_as_it_is_then(clock):
    log = TrainingLog(4, 100)
    replaced = io.StringIO()
    with contextlib.redirect_stdout(replaced):
        train(log, epochs=1, steps=4, clock=clock)
    assert percentages(replaced.getvalue())
    assert screen(replaced.getvalue()) == [*log.lines, ""]


def test_line_reaches_the_stream_at_once():
    class Buffered(io.StringIO):
        flushed = ""

        def flush(self):
            self.flushed = self.getvalue()

    stream = Buffered()
    TrainingLog(1, 1, stream=stream).write("begun")
    assert stream.flushed == "begun\n"


def test_progress_bar_moves_to_what_is_done_and_leaves_nothing_behind(clock):
    stream = io.StringIO()
    with progress_bar("CIFAR-10", stream) as move:
        for done in (0, 100, 250, 500, 750, 999):
            clock.now += 2
            move(done, 1000)
    assert "CIFAR-10" in stream.getvalue()
    assert [share for share in percentages(stream.getvalue()) if share] == [10, 25, 50, 75, 100]
    assert screen(stream.getvalue()) == [""]


def test_progress_bar_goes_back_where_the_work_begins_again(clock):
    stream = io.StringIO()
    with progress_bar("CIFAR-10", stream) as move:
        for done in (25, 50, 75, 0, 20, 40):  # as where a mirror breaks off and the next begins
            clock.now += 2
            move(done, 100)
    seen = percentages(stream.getvalue())
    assert seen[:3] == [25, 50, 75] and seen[-2:] == [20, 40]
    assert screen(stream.getvalue()) == [""]


def test_progress_bar_of_something_quick_is_never_shown(clock):
    stream = io.StringIO()
    with progress_bar("CIFAR-10", stream) as move:
        for done in range(1, 6):
            clock.now += 0.1
            move(done, 5)
    assert screen(stream.getvalue()) == [""]
    assert not percentages(stream.getvalue())


def test_progress_bar_leaves_nothing_behind_where_the_work_fails(clock):
    stream = io.StringIO()
    with pytest.raises(ConnectionError), progress_bar("CIFAR-10", stream) as move:
        clock.now += 2
        move(1, 2)
        raise ConnectionError
    assert percentages(stream.getvalue()) == [50]
    assert screen(stream.getvalue()) == [""]


def test_progress_bar_without_a_stream_goes_to_standard_output(clock, capsys):
    with progress_bar("LR finder") as move:
        clock.now += 2
        move(1, 2)
    captured = capsys.readouterr()
    assert percentages(captured.out) == [50] and not captured.err


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
