"""Clients of a server: so many of them that each wait for their answer, or a rate that waits for nothing."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from flatfix.serving.client import Client, NoAnswerError

MIN_ANSWERS = 12  # of a window: a slow server gets longer
TICK_S = 0.001


class Post(NamedTuple):
    """Hold one request."""

    target: str
    body: bytes
    content_type: str


class Window(NamedTuple):
    """Hold what was answered between two moments while all clients were asking.

    Attributes:
        seconds: between the moments.
        cpu_s: that the server computed.
        latencies_s: of the answers.
        failures: by status or reason.
    """

    seconds: float
    cpu_s: float
    latencies_s: list[float]
    failures: dict[str, int]


class Burst(NamedTuple):
    """Hold what came of requests that were sent at a rate, whatever the server did.

    Attributes:
        seconds: for which they were sent.
        sent: how many.
        answered_s: latencies of the answers that came within these seconds.
        refused_s: latencies of all refusals (503).
        late: answers that came after these seconds.
        failures: of what was neither, by status or reason.
        client_cpu_s: that this process computed, on the same cores.
    """

    seconds: float
    sent: int
    answered_s: list[float]
    refused_s: list[float]
    late: int
    failures: dict[str, int]
    client_cpu_s: float


async def closed_loop(
    url: str, posts: list[Post], num_clients: int, duration_s: float, cpu_s: Callable[[], float]
) -> Window:
    """Have clients ask one picture after another; the window begins when each has had its first answer."""
    left = itertools.cycle(posts)
    latencies: list[float] = []
    failures: Counter[str] = Counter()
    all_had_one, num_had_one = asyncio.Event(), 0
    is_open = is_over = False

    async def ask_on() -> None:
        nonlocal num_had_one
        is_first = True
        while not is_over:
            status, seconds = await ask(client, next(left))
            if is_open:
                if status == "200":
                    latencies.append(seconds)
                else:
                    failures[status] += 1
            if is_first:
                is_first, num_had_one = False, num_had_one + 1
                if num_had_one == num_clients:
                    all_had_one.set()

    async with Client(url, answer_s=120) as client:
        asking = asyncio.gather(*(ask_on() for _ in range(num_clients)))
        await all_had_one.wait()
        is_open, begun, cpu_before = True, time.perf_counter(), cpu_s()
        while time.perf_counter() < begun + duration_s or len(latencies) + failures.total() < MIN_ANSWERS:
            await asyncio.sleep(0.01)
        window = Window(time.perf_counter() - begun, cpu_s() - cpu_before, list(latencies), dict(failures))
        is_open, is_over = False, True
        await asking
    return window


async def open_loop(url: str, posts: list[Post], rate: float, duration_s: float) -> Burst:
    """Send `rate` requests a second, each over an idle connection or one of its own."""
    left = itertools.cycle(posts)
    answered: list[float] = []
    refused: list[float] = []
    late: list[float] = []
    failures: Counter[str] = Counter()
    tasks: set[asyncio.Task[None]] = set()

    async def send(client: Client, post: Post) -> None:
        status, seconds = await ask(client, post)
        if status == "200":
            (answered if time.perf_counter() < begun + duration_s else late).append(seconds)
        elif status == "503":
            refused.append(seconds)
        else:
            failures[status] += 1

    async with Client(url, answer_s=30) as client:
        begun, cpu_before, sent = time.perf_counter(), time.process_time(), 0
        while (passed := time.perf_counter() - begun) < duration_s:
            for _ in range(int(passed * rate) - sent):
                sent += 1
                task = asyncio.create_task(send(client, next(left)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(TICK_S)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu_before
        await asyncio.gather(*tasks)
    return Burst(seconds, sent, answered, refused, len(late), dict(failures), cpu)


async def ask(client: Client, post: Post) -> tuple[str, float]:
    """Return the status of an answer, or the reason that there is none, and the seconds that it took."""
    begun = time.perf_counter()
    try:
        answer = await client.post(*post)
    except NoAnswerError as error:
        return error.reason, time.perf_counter() - begun
    return str(answer.status), answer.seconds
