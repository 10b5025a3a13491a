from __future__ import annotations

import logging
import threading

from flatfix.serving.spool import Spool

BOUND_S = 10


def test_what_cannot_be_written_is_said_and_what_comes_later_is_written(logged: list[logging.LogRecord]):
    written: list[int] = []

    def write(items: list[int]) -> None:
        written.extend(100 // item for item in items)

    spool = Spool(write, 10, "spool")
    for item in (0, 5):
        spool.put(item)
        assert spool.flush(BOUND_S)
    spool.close()

    assert written == [20]
    assert [record.message for record in logged] == ["spool_failed"]


def test_a_spool_that_is_closed_while_its_thread_wakes_ends():
    class WorstMoment(threading.Event):
        def clear(self) -> None:
            closing = threading.Thread(target=spool.close, args=(0,))
            closing.start()
            closing.join()
            super().clear()

    spool: Spool[int] = Spool(lambda items: None, 10, "spool")
    before, spool._has_items = spool._has_items, WorstMoment()
    spool._has_items.set()
    before.set()
    spool._thread.join(BOUND_S)

    assert not spool._thread.is_alive()
