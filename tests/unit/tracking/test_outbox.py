from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

import pytest

from flatfix.tracking import outbox
from flatfix.tracking.outbox import MAX_BATCH, NUM_ATTEMPTS, Fact, Kind, Lost, Outbox, Refused
from tests.helpers.server import wait_until


class Receiver:
    """The other end of an outbox, in memory: it can be away, hang, and not take a fact with a certain key."""

    def __init__(self, trouble: Mapping[str, Exception] | None = None) -> None:
        self.is_away = False
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.trouble = trouble or {}
        self.batches: list[list[Fact]] = []
        self.num_calls = 0

    def send(self, facts: Sequence[Fact]) -> None:
        self.num_calls += 1
        assert self.goes_on.wait(timeout=20)
        if self.is_away:
            raise Lost("nobody there")
        for fact in facts:
            if fact.key in self.trouble:
                raise self.trouble[fact.key]
        self.batches.append(list(facts))

    @property
    def facts(self) -> list[Fact]:
        return [fact for batch in self.batches for fact in batch]


def fact(key: str, kind: Kind = "metric", step: int = 0) -> Fact:
    return Fact(kind, key, 1.0, timestamp_ms=1, step=step)


def metrics(count: int, first: int = 0) -> list[Fact]:
    return [fact("loss", step=step) for step in range(first, first + count)]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(outbox, "LOST_PATIENCE_S", 0.2)


def test_facts_of_all_kinds_arrive_in_the_order_in_which_they_were_put() -> None:
    receiver = Receiver()
    box = Outbox("server", receiver.send)
    kinds: list[Kind] = ["param", "metric", "tag", "metric", "artifact", "text", "status"]
    put = [fact(str(index), kind) for index, kind in enumerate(kinds)]
    box.put(put)
    box.close()
    assert receiver.facts == put
    assert box.unsent == []


def test_a_batch_holds_one_kind_and_no_more_than_mlflow_takes() -> None:
    receiver = Receiver()
    receiver.goes_on.clear()
    box = Outbox("server", receiver.send)
    put = metrics(2500) + [fact(str(index), "param") for index in range(250)] + [fact("a", "text"), fact("b", "text")]
    box.put(put)
    receiver.goes_on.set()
    box.close()
    assert receiver.facts == put
    for batch in receiver.batches:
        assert {each.kind for each in batch} == {batch[0].kind}
        assert len(batch) <= MAX_BATCH.get(batch[0].kind, 1)
    assert len(receiver.batches) == 3 + 3 + 2


def test_put_returns_at_once_while_a_call_hangs() -> None:
    receiver = Receiver()
    receiver.goes_on.clear()
    box = Outbox("server", receiver.send)
    box.put(metrics(1))
    wait_until(lambda: receiver.num_calls == 1, 5, "the call that hangs")
    start = time.perf_counter()
    box.put(metrics(1, first=1))
    assert time.perf_counter() - start < 0.05
    receiver.goes_on.set()
    box.close()
    assert receiver.facts == metrics(2)


def test_facts_put_by_several_threads_all_arrive_once() -> None:
    receiver = Receiver()
    box = Outbox("server", receiver.send)
    threads = [
        threading.Thread(target=lambda first=first: [box.put([each]) for each in metrics(200, first)])
        for first in (0, 200, 400)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    box.close()
    assert sorted(each.step for each in receiver.facts) == list(range(600))


def test_an_outage_is_waited_out_and_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LOST_PATIENCE_S", 5)
    receiver = Receiver()
    box = Outbox("MLflow at X", receiver.send)
    box.put(metrics(3))
    wait_until(lambda: len(receiver.facts) == 3, 5, "the first facts")
    receiver.is_away = True
    for first in range(3, 50):
        box.put(metrics(1, first))
    calls = receiver.num_calls
    wait_until(lambda: receiver.num_calls >= calls + 5, 5, "some attempts")
    threading.Timer(0.2, setattr, (receiver, "is_away", False)).start()
    box.close()
    assert receiver.facts == metrics(50)
    assert box.unsent == []
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(" (")[0] for line in printed] == [
        "MLflow at X is lost",
        "Waiting up to 5 s for MLflow at X.",
        "MLflow at X is back; what was kept is being sent.",
    ]


def test_attempts_in_an_outage_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.1)
    receiver = Receiver()
    receiver.is_away = True
    box = Outbox("server", receiver.send)
    start = time.monotonic()
    box.put(metrics(1))
    wait_until(lambda: receiver.num_calls == 4, 10, "the fourth attempt")
    assert time.monotonic() - start >= 0.1 + 0.2 + 0.4
    box.close()


def test_close_makes_an_attempt_at_once_and_gives_up_after_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 30)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_S", 30)
    receiver = Receiver()
    receiver.is_away = True
    box = Outbox("server", receiver.send)
    box.put(metrics(5))
    wait_until(lambda: receiver.num_calls == 1, 5, "the first attempt")
    start = time.monotonic()
    box.close()
    assert 0.2 <= time.monotonic() - start < 2
    assert receiver.num_calls == 2
    assert [each.fact for each in box.unsent] == metrics(5)


def test_close_gives_up_on_a_call_that_never_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "STUCK_PATIENCE_S", 0.2)
    receiver = Receiver()
    receiver.goes_on.clear()
    box = Outbox("server", receiver.send)
    box.put(metrics(2))
    start = time.monotonic()
    box.close()
    assert time.monotonic() - start < 3
    assert [each.fact for each in box.unsent] == metrics(2)
    receiver.goes_on.set()


def test_a_refused_fact_is_set_aside_with_the_reason_and_holds_up_nothing() -> None:
    receiver = Receiver({"loss%": Refused("loss% is not a name")})
    box = Outbox("server", receiver.send)
    receiver.goes_on.clear()
    box.put([*metrics(700), fact("loss%"), *metrics(700, first=700)])
    receiver.goes_on.set()
    box.close()
    assert receiver.facts == metrics(1400)
    assert [(each.fact.key, each.reason) for each in box.unsent] == [("loss%", "loss% is not a name")]
    assert receiver.num_calls < 40


def test_a_fact_that_fails_for_an_unknown_reason_is_set_aside_after_some_attempts() -> None:
    receiver = Receiver({"model": PermissionError("no credentials")})
    box = Outbox("server", receiver.send)
    box.put([fact("model", "artifact"), fact("notes", "text")])
    box.close()
    assert receiver.facts == [fact("notes", "text")]
    assert [(each.fact.key, each.reason) for each in box.unsent] == [("model", "no credentials")]
    assert receiver.num_calls == NUM_ATTEMPTS + 1


def test_an_attempt_that_succeeds_later_is_no_failure() -> None:
    trouble: dict[str, Exception] = {"model": ConnectionResetError("hiccup")}
    receiver = Receiver(trouble)
    box = Outbox("server", receiver.send)
    box.put([fact("model", "artifact")])
    wait_until(lambda: receiver.num_calls == 2, 5, "the second attempt")
    trouble.clear()
    box.close()
    assert receiver.facts == [fact("model", "artifact")]
    assert box.unsent == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_not_waited_for() -> None:
    def send(facts: Sequence[Fact]) -> None:
        raise SystemExit

    box = Outbox("server", send)
    box.put(metrics(3))
    start = time.monotonic()
    box.close()
    assert time.monotonic() - start < 5
    assert [each.fact for each in box.unsent] == metrics(3)


def test_the_thread_ends_with_close() -> None:
    before = threading.active_count()
    receiver = Receiver()
    box = Outbox("server", receiver.send)
    assert threading.active_count() == before + 1
    box.close()
    assert threading.active_count() == before
