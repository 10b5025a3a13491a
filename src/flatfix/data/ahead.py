"""Work in threads, a bounded number of items ahead of the one who waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], num_ahead: int, num_threads: int | None = None
) -> Generator[Result, None, None]:
    """Yield the function's result of each item, in order, while threads work on at most `num_ahead` of them.

    Items that no thread has begun are dropped when an item fails or the generator is closed, and `items`, if they are
    a generator, is closed then.
    From Python 3.14 on this is `Executor.map` with its `buffersize`.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == num_ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(items, Generator):
                items.close()
