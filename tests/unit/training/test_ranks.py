from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from flatfix.config.exit_codes import ExitCode
from flatfix.errors import Failure
from flatfix.training import ranks
from flatfix.training.devices import Place
from flatfix.training.interruption import Interrupted
from flatfix.training.ranks import LOOK_EVERY_S, Ranks, _Children, _Watch, leading

pytestmark = pytest.mark.slow

TWO = Place(num_ranks=2, num_local=2)
STARTED = replace(TWO, is_started=True)
FOLLOWS = """
import os

from flatfix.training.devices import started_place
from flatfix.training.interruption import Interrupted
from flatfix.training.ranks import following

with following(started_place()) as ranks:
    ranks.told()
"""
DIES_AFTER_IT = f"{FOLLOWS}\nos._exit(9)"
DIES_IN_IT = f"{FOLLOWS}    os._exit(9)"
NEVER_LEAVES = """
import sys, threading
from flatfix.config.exit_codes import ExitCode
from flatfix.training import ranks
from flatfix.training.devices import Place

ranks.RANK = "import sys; sys.stdin.read()"
ranks.GRACE_S = 1
with ranks.leading(Place(num_ranks=2, num_local=2)) as led:
    led._joined.callback(threading.Event().wait)  # as NCCL may, whose processes leave together
    raise ValueError("of rank 0")
"""


def wait_until_the_other_is_gone_and_looked_at() -> None:
    (other,) = psutil.Process().children()
    end = time.monotonic() + 60
    while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        threading.Event().wait(0.05)
    threading.Event().wait(5 * LOOK_EVERY_S)


def test_a_process_that_has_done_its_part_may_die_as_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "RANK", DIES_AFTER_IT)
    with leading(TWO) as led:
        led.tell({})
        wait_until_the_other_is_gone_and_looked_at()


def test_a_process_that_dies_before_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "RANK", DIES_IN_IT)
    with pytest.raises(Failure, match=r"the process of rank 1 \([0-9]+\) ended: exit code 9"), leading(TWO) as led:
        led.tell({})
        wait_until_the_other_is_gone_and_looked_at()


def test_a_store_that_is_gone_is_a_failure() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    with _Children(Place()) as children, pytest.raises(Failure, match="the other processes are out of sight: "):
        watch = _Watch(Ranks(TWO), client, children)
        del server
        try:
            threading.Event().wait(60)
        finally:
            watch.close()


def test_the_signal_that_torchrun_sends_when_a_process_is_gone_does_not_hide_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranks, "HEARING_S", 0)
    monkeypatch.setattr(ranks, "_found", lambda place: (place, TCPStore("127.0.0.1", 0, is_master=True)))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Failure, match="another process is gone: .*closed by peer"), leading(STARTED):
            try:
                raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer")
            finally:
                raise Interrupted("interrupted by SIGTERM")
        with pytest.raises(Interrupted), leading(STARTED):
            raise Interrupted("interrupted by SIGTERM")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_rank_zero_that_cannot_leave_the_others_is_ended_with_its_own_error() -> None:
    ended = subprocess.run([sys.executable, "-c", NEVER_LEAVES], capture_output=True, text=True, timeout=120)
    assert ended.returncode == ExitCode.ERROR
    assert ended.stderr == "error: of rank 0\n"
