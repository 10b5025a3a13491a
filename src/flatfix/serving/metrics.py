"""What the server counts and measures, for Prometheus.

Names follow https://prometheus.io/docs/practices/naming. With several workers each answers `/metrics` for all of them:
counters and histograms are sums over all workers of this server, those that ended included; gauges are of living ones.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from flatfix.serving import multiproc

# Steps of 1.3 to 2 where requests are, so that a quantile read off them is near; then up to what a client waits for.
SECONDS = (
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
)
PICTURES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)

MODEL = "model_version_info"
REST_S = 0.05  # between two renderings

# When a series began doubles the number of series, and several workers do not give it.
disable_created_metrics()

M = TypeVar("M", Counter, Gauge, Histogram)


class Labelled(Generic[M]):
    """A metric with labels whose series are found five times faster than prometheus_client finds them."""

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._series: dict[tuple[str, ...], M] = {}

    def labels(self, *values: str) -> M:
        """Return the series of these label values, in the order of the label names."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._metric.labels(*values)
        return series


class Metrics:
    """The metrics of one process. With several workers there is one of it a process, as their files are by process id.

    Attributes:
        requests: answered, by method, handler (path of the route) and status.
        duration: of requests, by method and handler, seconds.
        in_progress: requests in the building, by handler.
        rejected: requests, by reason.
        predicted: pictures, by index of the decided class, as text.
        confidence: probability of the decided class, of each picture.
        queue_depth: pictures that wait for the inference thread.
        queue_wait: of a picture, seconds.
        batch_size: pictures.
        decode: of a picture, seconds.
        inference: of a batch, seconds.
        reloads: of the model, by outcome.
        degraded: 1 while the server answers with another model than the registry says, or cannot ask it.
        feedback: true labels that were kept.
        journal_dropped: answers that the journal had no room for.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Labelled(
            Counter("http_requests_total", "Requests answered.", ["method", "handler", "status"], registry=registry)
        )
        self.duration = Labelled(
            Histogram(
                "http_request_duration_seconds",
                "From the head of a request to the end of its answer.",
                ["method", "handler"],
                buckets=SECONDS,
                registry=registry,
            )
        )
        self.in_progress = Labelled(
            Gauge(
                "http_requests_in_progress",
                "Requests being answered.",
                ["handler"],
                multiprocess_mode="livesum",
                registry=registry,
            )
        )
        self.rejected = Labelled(Counter("rejected_total", "Requests refused.", ["reason"], registry=registry))
        self.predicted = Labelled(
            Counter("predicted_class_total", "Pictures answered, by decided class.", ["class_id"], registry=registry)
        )
        self.confidence = Histogram(
            "prediction_confidence", "Probability of the decided class.", buckets=PROBABILITIES, registry=registry
        )
        self.queue_depth = Gauge(
            "queue_depth", "Pictures waiting for the model.", multiprocess_mode="livesum", registry=registry
        )
        self.queue_wait = Histogram(
            "queue_wait_seconds", "What a picture waited for the model.", buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "batch_size", "Pictures that the model answered at once.", buckets=PICTURES, registry=registry
        )
        self.decode = Histogram("decode_seconds", "Decoding a picture.", buckets=SECONDS, registry=registry)
        self.inference = Histogram("inference_seconds", "Answering a batch.", buckets=SECONDS, registry=registry)
        self.reloads = Labelled(
            Counter("model_reloads_total", "Looks at the registry and their outcomes.", ["outcome"], registry=registry)
        )
        self.degraded = Gauge(
            "model_degraded",
            "Whether a worker answers with another model than the registry says, or cannot ask it.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.feedback = Counter("feedback_total", "True labels that were kept.", registry=registry)
        self.journal_dropped = Counter(
            "journal_dropped_total", "Answers that the journal had no room for.", registry=registry
        )
        self._model = Gauge(
            MODEL,
            "1 for the model that answers.",
            ["name", "version", "alias", "runtime", "precision"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._shown: Gauge | None = None
        run = os.environ.get(multiproc.VARIABLE)
        self._workers = _Workers(Path(run)) if run else None

    def show_model(self, *, name: str, version: str, alias: str, runtime: str, precision: str) -> None:
        """Say which model answers from now on."""
        before, self._shown = self._shown, self._model.labels(name, version, alias, runtime, precision)
        self._shown.set(1)  # first, so that there is no moment without a model
        if before is not None and before is not self._shown:
            before.set(0)

    def render(self) -> tuple[bytes, str]:
        """Return what `/metrics` answers, of all workers, and its media type."""
        return generate_latest(_Current(self._workers or self._registry)), CONTENT_TYPE_PLAIN_0_0_4


class Scrapes:
    """Render one at a time, however many ask, and not all the time: each rendering takes the event loop's turn.

    Whoever asks gets what was rendered after that, with all that was counted before. So who asks during a rendering
    waits for the next one, together with all others who do.
    """

    def __init__(self, metrics: Metrics) -> None:
        """Render those of one process."""
        self._metrics = metrics
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[tuple[bytes, str]] | None = None  # until it begins to render
        self._not_before = 0.0

    async def get(self) -> tuple[bytes, str]:
        """Return what `Metrics.render` does."""
        if self._next is None:
            self._next = asyncio.create_task(self._render())
        return await asyncio.shield(self._next)  # one who goes away does not take it from the others

    async def _render(self) -> tuple[bytes, str]:
        async with self._turn:
            await asyncio.sleep(self._not_before - time.monotonic())
            self._next = None
            try:
                return await asyncio.to_thread(self._metrics.render)
            finally:
                self._not_before = time.monotonic() + REST_S


class _Workers:
    """Collects from the files of all workers."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def collect(self) -> Iterable[Metric]:
        multiproc.remove_dead(self._run)
        # A worker that starts makes a file first and gives it its size afterwards.
        files = [str(path) for path in self._run.glob("*.db") if _size(path)]
        merged: Iterable[Metric] = MultiProcessCollector.merge(files)
        return merged


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):  # another worker may have removed it by now
        return path.stat().st_size
    return 0


class _Current:
    """Collects what another collector does, but for the models of before, which files cannot forget."""

    def __init__(self, collector: _Workers | CollectorRegistry) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():
            if metric.name == MODEL:
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric
