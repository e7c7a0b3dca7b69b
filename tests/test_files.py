import contextlib
import errno
import os
import signal
import socket

import pytest

from onecycle.errors import StorageError
from onecycle.files import lock_folder

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
