import contextlib
import csv
import errno
import io
import json
import os
import signal
import socket
import subprocess

import pytest

from onecycle.errors import StorageError
from onecycle.files import (
    lock_folder,
    printable,
    read_regular,
    sync,
    to_csv,
    to_json,
    write_file,
    write_whole,
)
from onecycle.paths import drop_parts, part_of, storage_error


def contents(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


@pytest.mark.parametrize("before", [None, b"the earlier one, which is longer"])
@pytest.mark.parametrize("content", [b"", b"new\r\n\0\xff"])
def test_a_file_is_written_byte_for_byte_and_nothing_else_is_left(tmp_path, before, content):
    file = tmp_path / "a file"
    if before is not None:
        file.write_bytes(before)
    write_whole(file, content)
    assert contents(tmp_path) == {"a file": content}


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_writing_that_breaks_off_leaves_the_earlier_file_alone(
    tmp_path, monkeypatch, name, error
):
    def fail(*_):
        raise error

    write_whole(tmp_path / "file", b"before")
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(type(error)):
        write_whole(tmp_path / "file", b"after")
    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)) as caught:
        write_file(tmp_path / "file", b"after")
    if isinstance(error, OSError):
        said = str(caught.value)
        assert (
            said.startswith(f"cannot write {tmp_path / 'file'}: No space left")
            and "MB free" in said
        )
    assert contents(tmp_path) == {"file": b"before"}


def test_the_new_file_is_on_the_disk_before_it_takes_the_name_of_the_earlier_one(
    tmp_path, monkeypatch
):
    calls, fsync, replace = [], os.fsync, os.replace

    def syncing(descriptor):
        calls.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def replacing(source, target):
        calls.append(("replace", target.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    (tmp_path / "file").write_bytes(b"before")
    write_file(tmp_path / "file", b"after it")
    assert calls == [("fsync", 8), ("replace", b"before")]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    for file in (tmp_path / "missing" / "file", tmp_path / "folder"):
        with pytest.raises(StorageError, match="cannot write") as caught:
            write_file(file, b"content")
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("number", "passed"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)]
)
def test_a_drive_without_fsync_is_no_error_but_a_failing_one_is(monkeypatch, number, passed):
    def fail(_):
        raise OSError(number, "said the drive")

    monkeypatch.setattr(os, "fsync", fail)
    with contextlib.nullcontext() if passed else pytest.raises(OSError, match="said the drive"):
        sync(0)


def test_a_table_can_be_read_back_whatever_its_texts_hold():
    rows = [["name", "share"], ['a "b", c', "0.1"], ["two\nlines", ""], ["犬", "é"]]
    table = to_csv(rows)
    assert list(csv.reader(io.StringIO(table.decode()))) == rows
    assert b"\r" not in table
    assert to_csv([[0.1, 3, None]]) == b"0.1,3,\n"
    assert to_csv([[os.fsdecode(b"caf\xe9.png")]]) == b"caf\xe9.png\n"


def test_json_is_plain_data_in_lines_and_finite():
    value = {"a": [1, 0.1, None, True], "b": {"c": "é"}}
    assert json.loads(to_json(value)) == value
    assert to_json({"a": 1}) == b'{\n "a": 1\n}\n'
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            to_json({"loss": number})


fcntl = pytest.importorskip("fcntl")


@contextlib.contextmanager
def holder(folder, orphan=False):
    """A process that holds the folder, with a child of its own that outlives it where wanted."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock_folder(folder):
            if orphan and os.fork() == 0:
                signal.alarm(20)
                signal.pause()
            os.write(tell, b"x")
            signal.alarm(20)
            signal.pause()
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    with holder(tmp_path) as pid:
        for _ in range(2):  # a refusal takes nothing from the first one
            with (
                pytest.raises(
                    StorageError, match=f"{tmp_path} .*{pid} on {socket.gethostname()} since 2"
                ),
                lock_folder(tmp_path),
            ):
                pass


def test_a_second_run_in_the_same_process_is_refused(tmp_path):
    with lock_folder(tmp_path), pytest.raises(StorageError), lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("orphan", [False, True])
def test_the_lock_of_a_killed_run_is_taken_over(tmp_path, orphan):
    with holder(tmp_path, orphan) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert os.listdir(tmp_path) == [".lock"]
        with lock_folder(tmp_path) as warning:
            assert warning is None
    assert os.listdir(tmp_path) == []


def test_nothing_is_left_and_the_folder_is_free_again_even_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with lock_folder(tmp_path):
        pass


def test_a_forked_child_neither_keeps_nor_ends_the_lock(tmp_path):
    with lock_folder(tmp_path):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(StorageError), lock_folder(tmp_path):
            pass


def test_where_locks_are_not_supported_the_run_goes_on_with_a_warning(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path) as warning:
        assert str(tmp_path) in warning and "not supported" in warning
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_none_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("missing", "file"):
        with pytest.raises(StorageError, match=place), lock_folder(tmp_path / place):
            pass


def test_what_a_spreadsheet_would_compute_is_a_text():
    rows = [["=cmd|' /c calc'!A1", "+1", "-x", "@a", "a=b", -1, -0.5]]
    assert to_csv(rows) == b"'=cmd|' /c calc'!A1,'+1,'-x,'@a,a=b,-1,-0.5\n"


def test_what_would_steer_a_terminal_is_shown_as_escapes_in_one_line():
    assert (
        printable("a\nb\x1b[2Jc\x07 \u202e \u72ac\xa0é") == r"a\nb\x1b[2Jc\x07 \u202e"
        " \u72ac\xa0é"
    )


def test_a_link_stays_one_and_its_target_is_written(tmp_path):
    (tmp_path / "target").write_bytes(b"before")
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", b"after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"after"


def test_a_pipe_gets_the_content_and_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    write_file(tmp_path / "pipe", b"content")
    assert reader.communicate(timeout=60)[0] == b"content"
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda file: os.symlink("/dev/zero", file)])
def test_what_is_no_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "it")
    with pytest.raises(OSError):
        read_regular(tmp_path / "it")


def test_a_file_is_read_up_to_its_bound(tmp_path):
    (tmp_path / "it").write_bytes(b"12345")
    assert read_regular(tmp_path / "it", most=5) == b"12345"
    with pytest.raises(OSError, match="4 at most"):
        read_regular(tmp_path / "it", most=4)
    if os.path.exists("/proc/version"):  # whose size is said to be 0
        with pytest.raises(OSError, match="more than 4"):
            read_regular("/proc/version", most=4)


def test_a_lock_that_is_a_link_does_not_empty_what_it_leads_to(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock").symlink_to("mine")
    with pytest.raises(StorageError), lock_folder(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def dead():
    """The number of a process that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    file = tmp_path / "table.csv"
    own = part_of(file).name
    living = own.replace(f".{os.getpid()}.", f".{os.getppid()}.")
    killed = own.replace(f".{os.getpid()}.", f".{dead()}.")
    elsewhere = killed.replace(socket.gethostname(), "elsewhere")
    for name in (living, killed, elsewhere):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / killed.replace("table", "folder")).mkdir()
    write_file(file, b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {
        "table.csv", living, elsewhere, killed.replace("table", "folder"),
    }  # fmt: skip
    drop_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", living, elsewhere}


def test_a_full_disk_is_told_with_what_is_free(tmp_path):
    said = str(storage_error(tmp_path / "missing" / "file", OSError(errno.ENOSPC, "No space")))
    assert "MB free" in said and "make room" in said


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StorageError, match=r"\.lock.*remove this file"), lock_folder(tmp_path):
        pass
