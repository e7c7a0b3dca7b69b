import os
import signal
import threading

import pytest

from onecycle.training.signals import STOPPING, catch_signals

BOTH = [signal.SIGINT, signal.SIGTERM]


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_noted_and_the_handlers_come_back(number):
    before = [signal.getsignal(each) for each in BOTH]
    with catch_signals() as signals:
        assert not signals.stop() and signals.received is None
        send(number)
        assert signals.stop() and signals.received == number
    assert [signal.getsignal(each) for each in BOTH] == before


def test_handlers_come_back_after_an_error():
    before = [signal.getsignal(each) for each in BOTH]
    with pytest.raises(ZeroDivisionError), catch_signals():
        raise ZeroDivisionError
    assert [signal.getsignal(each) for each in BOTH] == before


@pytest.mark.parametrize("first", BOTH)
def test_a_second_ctrl_c_ends_at_once(first):
    with catch_signals() as signals:
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert signals.received == first


@pytest.mark.parametrize("first", BOTH)
def test_a_second_sigterm_ends_the_process(first):
    pid = os.fork()
    if pid == 0:
        with catch_signals():
            send(first)
            send(signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with catch_signals() as signals:
            send(signal.SIGINT)
            assert not signals.stop()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_it_does_nothing():
    before, stopped = [signal.getsignal(each) for each in BOTH], []

    def work():
        with catch_signals() as signals:
            stopped.append(signals.stop())
            assert [signal.getsignal(each) for each in BOTH] == before

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stopped == [False]
