from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from flatfix.sweeps.signals import SIGNALS, stopping


class Calls:
    """What was called, and in which thread; a bounded wait for it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.threads: set[threading.Thread] = set()
        self._called = threading.Condition()

    def let_end(self) -> None:
        self._note("let_end")

    def kill(self) -> None:
        self._note("kill")

    def wait_for(self, *names: str) -> None:
        with self._called:
            assert self._called.wait_for(lambda: self.names == [*names], timeout=10), self.names

    def _note(self, name: str) -> None:
        with self._called:
            self.names.append(name)
            self.threads.add(threading.current_thread())
            self._called.notify_all()


@pytest.fixture
def calls() -> Iterator[Calls]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield Calls()
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_the_first_ctrl_c_lets_jobs_end_and_the_second_ends_them(calls: Calls) -> None:
    with stopping(calls.let_end, calls.kill):
        os.kill(os.getpid(), signal.SIGINT)
        calls.wait_for("let_end")
        os.kill(os.getpid(), signal.SIGINT)
        calls.wait_for("let_end", "kill")


def test_sigterm_ends_jobs_at_once(calls: Calls) -> None:
    with stopping(calls.let_end, calls.kill):
        os.kill(os.getpid(), signal.SIGTERM)
        calls.wait_for("kill")


def test_after_that_a_signal_ends_the_process(calls: Calls) -> None:
    with stopping(calls.let_end, calls.kill):
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.SIG_DFL not in {signal.getsignal(number) for number in SIGNALS}
        os.kill(os.getpid(), signal.SIGTERM)
        assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_DFL}
    calls.wait_for("let_end", "kill")


def test_what_is_called_may_take_a_lock_that_the_main_thread_holds(calls: Calls) -> None:
    lock = threading.Lock()

    def let_end() -> None:
        with lock:
            calls.let_end()

    with stopping(let_end, calls.kill):
        with lock:
            os.kill(os.getpid(), signal.SIGINT)
        calls.wait_for("let_end")
    assert threading.main_thread() not in calls.threads


def test_a_signal_on_the_way_out_is_not_lost(calls: Calls) -> None:
    with stopping(calls.let_end, calls.kill):
        os.kill(os.getpid(), signal.SIGINT)
    assert calls.names == ["let_end"]


def test_ctrl_c_that_was_ignored_stays_ignored(calls: Calls) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping(calls.let_end, calls.kill):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert calls.names == ["kill"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone(calls: Calls) -> None:
    found = []

    def look() -> None:
        with stopping(calls.let_end, calls.kill):
            found.extend(signal.getsignal(number) for number in SIGNALS)

    before = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=look)
    thread.start()
    thread.join(10)
    assert found == before
