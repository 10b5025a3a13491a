from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from flatfix.data import lease, s3
from flatfix.data.lease import Lease
from flatfix.data.store import Store, open_store
from flatfix.errors import UserError
from tests.helpers.fault_proxy import FaultProxy, HoldAnswer, Refuse
from tests.helpers.s3_server import S3Server
from tests.helpers.server import wait_until

pytestmark = pytest.mark.service

HOLD = """
import sys
from flatfix.data import lease
lease.LEASE_S = 2
held = lease.Lease(sys.argv[1])
held.take()
print("held", flush=True)
input()
held.confirm()
"""


@pytest.fixture
def uri(s3_server: S3Server, tmp_path: Path) -> str:
    return f"s3://{s3_server.bucket}/{tmp_path.name}/.lock"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 2)
    monkeypatch.setattr(lease, "POLL_S", 0.1)


@contextmanager
def holder(uri: str) -> Iterator[subprocess.Popen[str]]:
    """Run another process that holds the lease, and confirms it when it is written to."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HOLD, uri], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_waits_as_long_as_the_first_lives_and_says_for_whom(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = Lease(uri), Lease(uri)
    first.take()
    order: list[str] = []

    def take_second() -> None:
        second.take()
        order.append("second")

    thread = threading.Thread(target=take_second)
    thread.start()
    tags: set[str] = set()

    def is_renewed_again() -> bool:
        tags.add(s3.look(uri).tag)
        return len(tags) > 5  # one each third of a lease

    wait_until(is_renewed_again, 30, "the first to renew its lease")
    first.confirm()
    order.append("first")
    first.release()
    thread.join(timeout=20)
    second.confirm()
    second.release()
    assert order == ["first", "second"]
    assert capsys.readouterr().out.count("waiting for ") == 1
    assert s3.read(uri) == lease.FREE


def test_who_died_is_succeeded_when_its_lease_ends(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    with holder(uri) as process:
        os.kill(process.pid, signal.SIGKILL)
        written = s3.look(uri)
        Lease(uri).take()
    assert f"(process {process.pid})".encode() in written.content
    assert f"(process {process.pid}), which holds {uri}" in capsys.readouterr().out
    assert f"(process {os.getpid()})".encode() in s3.read(uri)


def test_who_was_out_of_touch_learns_that_another_took_over(uri: str) -> None:
    with holder(uri) as process:
        os.kill(process.pid, signal.SIGSTOP)
        mine = Lease(uri)
        mine.take()
        os.kill(process.pid, signal.SIGCONT)
        _, said = process.communicate("confirm\n", timeout=20)
        assert process.returncode == 1
        assert f"(process {os.getpid()}) took over {uri}, as this process was out of touch" in said
        mine.confirm()
        assert f"(process {os.getpid()})".encode() in s3.read(uri)
        mine.release()


def test_of_many_at_once_one_holds_it_at_a_time(uri: str) -> None:
    begin = threading.Barrier(6, timeout=20)
    looks: list[Lease] = []
    inside: list[Lease] = []
    most: list[int] = []

    class Taker(Lease):
        """A lease whose takers all find it free before the first of them writes."""

        def _look(self) -> s3.Seen | None:
            seen = super()._look()
            looks.append(self)
            if looks.count(self) == 1:
                begin.wait()
            return seen

    def hold(number: int) -> None:
        mine = Taker(uri)
        mine.take()
        inside.append(mine)
        num_looks = len(looks)
        # The last has nobody to wait for it.
        wait_until(
            lambda: len(most) == 5 or len(inside) > 1 or any(look is not mine for look in looks[num_looks:]),
            20,
            "another to be refused",
        )
        most.append(len(inside))
        mine.confirm()
        inside.remove(mine)
        mine.release()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(hold, range(6)))
    assert most == [1] * 6


def test_who_takes_it_and_gets_no_answer_is_not_locked_out(s3_server: S3Server, uri: str) -> None:
    with FaultProxy(s3_server.port) as proxy:
        proxy.on("^PUT ", HoldAnswer(), times=1, then=proxy.release)
        mine = Lease(uri, proxy.endpoint)
        mine.take()
        mine.confirm()
        assert proxy.faults == proxy.requests[1:2]
        assert f"(process {os.getpid()})".encode() in s3.read(uri)
        mine.release()


def test_a_renewal_without_an_answer_is_not_taken_for_a_loss(s3_server: S3Server, uri: str) -> None:
    with FaultProxy(s3_server.port) as proxy:
        mine = Lease(uri, proxy.endpoint)
        mine.take()
        tag = s3.look(uri).tag
        proxy.on("^PUT ", HoldAnswer(), times=2, then=proxy.release)
        wait_until(lambda: len(proxy.faults) == 2, 20, "two renewals")  # tried once each
        wait_until(lambda: proxy.count("^PUT ") > 6, 20, "another")
        assert s3.look(uri).tag != tag
        mine.confirm()
        mine.release()
        assert s3.read(uri) == lease.FREE


def test_a_server_without_conditional_writes_keeps_nobody_out_and_it_is_said(
    s3_server: S3Server, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultProxy(s3_server.port) as proxy:
        proxy.on("(?i)if-none-match", Refuse(501, "NotImplemented"))
        mine = Lease(uri, proxy.endpoint)
        mine.take()
        mine.confirm()
        mine.release()
        assert len(proxy.faults) == 1
    assert f"{uri}: this server has no conditional writes." in capsys.readouterr().out


def test_a_server_that_knows_but_one_condition_keeps_nobody_out_and_it_is_said(
    s3_server: S3Server, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultProxy(s3_server.port) as proxy:
        proxy.on("(?i)\r\nif-match", Refuse(501, "NotImplemented"))
        for number in (1, 2):  # the first leaves nothing that the second would wait for
            mine = Lease(uri, proxy.endpoint)
            mine.take()
            assert f"{uri}: this server has no conditional writes." in capsys.readouterr().out
            mine.confirm()
            mine.release()
            assert len(proxy.faults) == number
            assert s3.read(uri) == lease.FREE


def test_a_server_that_forgets_a_condition_later_is_reported_by_a_confirmation_alone(
    s3_server: S3Server, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(s3_server.port) as proxy:
        mine = Lease(uri, proxy.endpoint)
        mine.take()
        proxy.on("(?i)\r\nif-match", Refuse(501, "NotImplemented"))
        wait_until(lambda: len(proxy.faults) == 2, 20, "two renewals")  # the thread outlives the first
        monkeypatch.setattr(lease, "LEASE_S", 0)  # it asks the server
        with pytest.raises(UserError, match="no conditional writes"):
            mine.confirm()
        mine.release()


def test_a_lock_is_no_key_of_the_store(s3_server: S3Server, uri: str, tmp_path: Path) -> None:
    store: Store = open_store(
        {"uri": uri.removesuffix("/.lock"), "endpoint_url": None, "region": None}, tmp_path / "cache"
    )
    with store.lock("datasets/pets/v1") as confirm:
        confirm()
        assert s3.read(f"{store.uri}/datasets/pets/v1/.lock")
        assert store.list("") == store.list("datasets/pets/v1/") == []
    assert s3.read(f"{store.uri}/datasets/pets/v1/.lock") == lease.FREE
    with pytest.raises(UserError, match="mine"), store.lock("datasets/pets/v1"):
        raise UserError("mine")
    assert s3.read(f"{store.uri}/datasets/pets/v1/.lock") == lease.FREE
