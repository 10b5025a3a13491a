from __future__ import annotations

import os
import signal

import pytest

from flatfix.training.interruption import SIGNALS, Interrupted, deferring, interruptible


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_once_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted, match=f"interrupted by {number.name}"), interruptible():
        os.kill(os.getpid(), number)
        pytest.fail("the signal did not raise")
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_deferred_signal_is_only_remembered_and_then_the_handlers_come_back() -> None:
    with interruptible():
        before = [signal.getsignal(each) for each in SIGNALS]
        with deferring() as was_asked_to_stop:
            assert was_asked_to_stop() is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert was_asked_to_stop() == "interrupted by SIGTERM"
            assert {signal.getsignal(each) for each in SIGNALS} == {signal.SIG_DFL}  # a second one kills
        assert [signal.getsignal(each) for each in SIGNALS] == before
