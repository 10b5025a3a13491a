from __future__ import annotations

import threading
import weakref

import pytest

from flatfix.data.ahead import map_ahead


def test_results_come_in_the_order_of_the_items_whatever_thread_is_first():
    first_may_end = threading.Event()

    def work(item):
        if item == 0:
            assert first_may_end.wait(10)
        else:
            first_may_end.set()
        return item * item

    assert list(map_ahead(work, range(20), num_ahead=4, num_threads=2)) == [item * item for item in range(20)]


def test_no_more_items_are_taken_than_the_bound_while_nobody_asks_for_results():
    taken = []

    def items():
        for item in range(1_000):
            taken.append(item)
            yield item

    results = map_ahead(str, items(), num_ahead=8)
    assert [next(results), next(results)] == ["0", "1"]
    assert len(taken) == 9
    results.close()
    assert len(taken) == 9


def test_closing_drops_the_items_that_no_thread_has_begun():
    class Item:
        pass

    begun = []
    is_dropped = threading.Event()

    def items():
        for number in range(50):
            item = Item()
            if number == 20:
                weakref.finalize(item, is_dropped.set)
            yield item

    def work(item):
        begun.append(id(item))
        assert len(begun) == 1 or is_dropped.wait(10)

    results = map_ahead(work, items(), num_ahead=50, num_threads=1)
    next(results)
    results.close()
    assert is_dropped.is_set()
    assert len(begun) <= 2


def test_an_error_reaches_the_one_who_asks_at_its_place():
    results = map_ahead(lambda item: 10 // item, [5, 0, 1], num_ahead=3)
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
