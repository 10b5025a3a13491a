"""Answer pictures in batches, computed by one thread that has all cores to itself."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import perf_counter
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from flatfix.inference.predictor import Predictions, Predictor
from flatfix.serving.metrics import Metrics
from flatfix.serving.problems import Problem

LOG = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Item:
    """Hold pictures that wait for one answer.

    Attributes:
        predictor: that is asked.
        images: `[N, H, W, 3] uint8`.
        is_urgent: whether somebody waits for them who did not ask for patience.
        since: when they came, by `perf_counter`.
        future: of the event loop, for what is said of them.
    """

    predictor: Predictor
    images: NDArray[np.uint8]
    is_urgent: bool
    since: float
    future: asyncio.Future[Predictions]


Outcome = tuple[asyncio.Future[Predictions], Predictions | Exception]


class Engine:
    """Batch the pictures of many requests, as Clipper does (Crankshaw et al. 2017, arXiv 1612.03079).

    A batch takes what waits, and begins as soon as the one before it is done. It waits for more pictures only while
    some are being decoded, and `wait_s` at most: a request alone never waits. All pictures of a batch are for the same
    predictor, that of the request that came first; so the old model and the new one take turns during a swap. Pictures
    that are not urgent are computed when no urgent ones wait, one request in a batch: under full load they wait
    until the deadline of their request.

    The event loop and the thread share one queue and no other state that both change.
    """

    def __init__(self, *, batch_size: int, wait_s: float, metrics: Metrics) -> None:
        """Make an engine that does not run yet.

        Args:
            batch_size: pictures at most that are computed at once.
            wait_s: see above.
            metrics: of this process.
        """
        self._batch_size = batch_size
        self._wait_s = wait_s
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None
        self._gate = Lock()  # nothing enters the inbox after the None that ends it
        self._is_open = False
        self._inbox: SimpleQueue[_Item | None] = SimpleQueue()
        self._num_coming = 0  # changed by the event loop alone
        # Of the thread alone:
        self._urgent: deque[_Item] = deque()
        self._patient: deque[_Item] = deque()
        self._is_ending = False
        self._num_failures: WeakKeyDictionary[Predictor, int] = WeakKeyDictionary()  # of the last batches, in a row

    @property
    def is_alive(self) -> bool:
        """Return whether pictures are answered."""
        return self._is_open and self._thread is not None and self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Count the requests whose computation has not begun; one of more than `batch_size` pictures counts once."""
        return self._inbox.qsize() + len(self._urgent) + len(self._patient)

    def num_failures(self, predictor: Predictor) -> int:
        """Count the batches of a predictor, up to the last one, of which it answered none of the requests."""
        return self._num_failures.get(predictor, 0)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to answer the requests of an event loop."""
        assert self._thread is None, "an engine starts once"
        self._loop, self._is_open = loop, True
        # A daemon, so that a computation that hangs cannot keep the process from ending.
        self._thread = Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Refuse new pictures, answer those that wait, and end the thread.

        Answers are delivered by the event loop: call this from another thread, or let the loop run on afterwards.

        Args:
            timeout_s: how long that may take; unbounded by default.
        """
        with self._gate:
            if self._is_open:
                self._is_open = False
                self._inbox.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Tell that pictures are being decoded, which a batch may wait for; on the event loop only."""
        self._num_coming += 1
        try:
            yield
        finally:
            self._num_coming -= 1

    async def answer(self, predictor: Predictor, images: NDArray[np.uint8], *, is_urgent: bool = True) -> Predictions:
        """Answer pictures `[N, H, W, 3] uint8`, N above 0; on the event loop only.

        More than `batch_size` pictures go in parts, each behind whoever came meanwhile: many pictures of one client
        hold up the others by a batch, not by all of them.

        Raises:
            Problem: 503 when the engine has stopped.
            Exception: what the predictor raised for these pictures.
        """
        size = self._batch_size
        parts = [
            await self._ask(predictor, images[start : start + size], is_urgent) for start in range(0, len(images), size)
        ]
        return parts[0] if len(parts) == 1 else _joined(parts)

    async def _ask(self, predictor: Predictor, images: NDArray[np.uint8], is_urgent: bool) -> Predictions:
        with self._gate:
            if self._loop is None or not self._is_open:
                raise Problem(503, "Stopping", "This server answers no more pictures.", reason="stopping")
            future: asyncio.Future[Predictions] = self._loop.create_future()
            self._metrics.queue_depth.inc(len(images))
            self._inbox.put(_Item(predictor, images, is_urgent, perf_counter(), future))
        return await future

    def _run(self) -> None:
        # No variable here may outlive a batch: it would keep a model in memory that was swapped out.
        while self._has_work():
            try:
                self._serve(self._take())
            except Exception:  # of the metrics, or of a loop that was closed; without this thread nothing is answered
                LOG.exception("a batch was computed and not delivered or not counted")

    def _has_work(self) -> bool:
        """Wait until there is a batch to compute; return False when there never will be."""
        while not (self._urgent or self._patient or self._is_ending):
            self._sort(self._inbox.get())
        for _ in range(self._inbox.qsize()):
            self._sort(self._inbox.get())
        while (left := self._patience()) > 0:
            with suppress(Empty):
                self._sort(self._inbox.get(timeout=left))
        return bool(self._urgent or self._patient)

    def _sort(self, item: _Item | None) -> None:
        if item is None:
            self._is_ending = True
        else:
            (self._urgent if item.is_urgent else self._patient).append(item)

    def _patience(self) -> float:
        """Return for how many seconds the next batch may still wait for pictures that are coming."""
        waiting = self._urgent or self._patient
        if not self._num_coming or not waiting or sum(len(item.images) for item in waiting) >= self._batch_size:
            return 0
        return waiting[0].since + self._wait_s - perf_counter()

    def _take(self) -> list[_Item]:
        """Take who waited longest, and of those behind it for the same predictor as many as fit; perhaps nobody.

        Whoever is passed over comes nearer to the front with every batch, and is served once there.
        """
        queue = self._urgent or self._patient
        batch: list[_Item] = []
        passed: list[_Item] = []
        num_left = self._batch_size
        while queue and num_left > 0:
            item = queue.popleft()
            if item.future.cancelled():
                self._metrics.queue_depth.dec(len(item.images))
            elif batch and (item.predictor is not batch[0].predictor or len(item.images) > num_left):
                passed.append(item)
            else:
                batch.append(item)
                num_left -= len(item.images)
                if not item.is_urgent:  # an urgent one, if it comes now, waits for no more than this
                    break
        queue.extendleft(reversed(passed))
        return batch

    def _serve(self, batch: list[_Item]) -> None:
        """Compute a batch and deliver it: the event loop is woken once for all of it."""
        if not batch:
            return
        num_pictures = sum(len(item.images) for item in batch)
        self._metrics.queue_depth.dec(num_pictures)
        begun = perf_counter()
        outcomes = _outcomes(batch)
        seconds = perf_counter() - begun
        self._count_failures(batch[0].predictor, all(isinstance(said, Exception) for _, said in outcomes))
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_deliver, outcomes)
        self._metrics.inference.observe(seconds)
        self._metrics.batch_size.observe(num_pictures)
        for item in batch:
            if item.is_urgent:  # the others wait by design
                self._metrics.queue_wait.observe(begun - item.since)

    def _count_failures(self, predictor: Predictor, has_failed: bool) -> None:
        if has_failed:
            self._num_failures[predictor] = self.num_failures(predictor) + 1
        else:
            self._num_failures.pop(predictor, None)


def _outcomes(batch: list[_Item]) -> list[Outcome]:
    """Return what the predictor says of each item, or raises.

    Where it raises for several together, it is asked for each alone: what is wrong with one, or too much memory for
    all at once, is then no fault of the others.
    """
    predictor = batch[0].predictor
    if len(batch) == 1:
        return [(batch[0].future, _said(predictor, batch[0].images))]
    said = _said(predictor, *(item.images for item in batch))
    if isinstance(said, Exception):
        LOG.warning("a batch of %d requests failed (%s): each is computed alone", len(batch), type(said).__name__)
        return [(item.future, _said(predictor, item.images)) for item in batch]
    outcomes: list[Outcome] = []
    start = 0
    for item in batch:
        end = start + len(item.images)
        outcomes.append((item.future, _part(said, slice(start, end))))
        start = end
    return outcomes


def _said(predictor: Predictor, *images: NDArray[np.uint8]) -> Predictions | Exception:
    # The traceback of an error keeps this frame: with a future in it, that would be a cycle that keeps the model.
    try:
        return predictor.predict(np.concatenate(images) if len(images) > 1 else images[0])
    except Exception as error:
        return error


def _deliver(outcomes: list[Outcome]) -> None:
    """Wake those who wait; on the event loop."""
    for future, said in outcomes:
        if future.done():  # its client went away while it was computed
            continue
        if isinstance(said, Exception):
            future.set_exception(said)
        else:
            future.set_result(said)


def _part(said: Predictions, rows: slice) -> Predictions:
    return Predictions(
        said.logits[rows], said.features[rows], said.probabilities[rows], said.labels[rows], said.needs_review[rows]
    )


def _joined(parts: list[Predictions]) -> Predictions:
    return Predictions(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Predictions)))
