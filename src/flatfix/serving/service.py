"""What answers requests: the parts of a server, started and stopped together."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatfix import memory
from flatfix.inference.card import Card
from flatfix.inference.predictor import Predictions
from flatfix.machine import num_cores
from flatfix.serving.answers import Feedback
from flatfix.serving.aside import Aside
from flatfix.serving.decoding import Decoders
from flatfix.serving.engine import Engine
from flatfix.serving.explain import explain
from flatfix.serving.follower import Follower
from flatfix.serving.journal import Journal
from flatfix.serving.last_good import LastGood
from flatfix.serving.live import Live, Served
from flatfix.serving.metrics import Metrics
from flatfix.serving.outcome import UNDER_WAY, Outcome
from flatfix.serving.problems import Problem, overloaded
from flatfix.serving.settings import Settings
from flatfix.serving.source import Source

DIGITS = 6  # of a probability
MAX_FAILURES = 5  # batches in a row, after which a model is lost until it answers one
FIRST_LOOK_S = 8.0  # that a worker of several waits for, before it takes connections
STOP_S = 5.0  # that the end of a model's loading, and of a batch, is waited for; uvicorn drained before
PATIENCE = 0.8  # of the deadline of a request, for a look at the registry
REVIEW = "review"  # decided where a person should look


class Service:
    """Answer pictures with the model that is live.

    Attributes:
        settings: of the server.
        metrics: that it counts with.
        live: the model, and how it is.
        follower: of the alias.
        engine: that computes.
        journal: of answers and feedback, None where no record is kept.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Make the parts; none of them runs yet."""
        self.settings = settings
        self.metrics = metrics
        self.live = Live()
        self.engine = Engine(batch_size=settings.batch_size, wait_s=settings.batch_wait_s, metrics=metrics)
        self._decoders = Decoders(num_cores(), round(settings.limits.megapixels * 1e6), metrics)
        self.follower = Follower(
            Source(settings.uri, settings.name, settings.alias, settings.cache),
            LastGood.of(settings.cache / "serving", settings.uri, settings.name, settings.alias),
            self.live,
            metrics,
            settings,
        )
        self._num_pictures = 0  # in the building
        self._aside = Aside("feedback")
        folder = settings.output / "serving"
        self.journal = Journal(folder, settings.journal_mb, metrics) if settings.journal_mb else None

    async def start(self) -> None:
        """Begin to follow the alias; requests are refused until there is a model.

        One worker of several takes no connection before it has looked for one: others answer meanwhile.
        """
        memory.keep_little()
        self.engine.start(asyncio.get_running_loop())
        self.follower.start()
        if multiprocessing.parent_process() is not None:
            await asyncio.to_thread(self.follower.wait, FIRST_LOOK_S)

    async def stop(self) -> None:
        """Answer what waits, and end every thread; what hangs is left to itself."""
        end = time.monotonic() + STOP_S
        await asyncio.to_thread(self.follower.stop, STOP_S)
        await asyncio.to_thread(self.engine.stop, max(0, end - time.monotonic()))
        self._decoders.stop()
        if self.journal:
            await asyncio.to_thread(self.journal.close)

    async def predict(self, pictures: Sequence[bytes], request_id: str) -> bytes:
        """Return the answer to pictures, as JSON.

        Raises:
            Problem: there is no model, no room, or a picture is not one.
        """
        served = self._served()
        with self._room(len(pictures)):
            predictions = await self._answer(served, pictures)
        rows = _rows(served.predictor.package.card, predictions)
        answer = {"request_id": request_id, "model_version": str(served.version), "predictions": rows}
        body = _json(answer)  # before any of it is counted
        for row, label in zip(rows, predictions.labels.tolist(), strict=True):
            self.metrics.predicted.labels(str(label)).inc()
            self.metrics.confidence.observe(row["probability"])
        if self.journal:
            self.journal.answered(request_id, str(served.version), rows)
        return body

    async def explain(self, picture: bytes, request_id: str) -> bytes:
        """Return where a picture shows its class, as JSON, when nobody who wants a prediction has to wait for it.

        Raises:
            Problem: there is no model, no room, or the picture is not one.
        """
        served = self._served()
        card = served.predictor.package.card
        with self._room(1):
            pixels, box = await self._decoders.load_with_box(picture, card.image_size, card.resize)
            heat = await explain(self.engine, served.predictor, pixels)
        answer = {
            "request_id": request_id,
            "model_version": str(served.version),
            "class": card.classes[heat.label],
            "probability": round(heat.probability, DIGITS),
            "heat": np.round(heat.grid, 4).tolist(),
            "drop": round(heat.drop, DIGITS),
            "box": [round(each, 4) for each in box],
        }
        return _json(answer)

    async def keep(self, told: Feedback) -> None:
        """Keep the true class of a picture that was answered.

        A model that was swapped meanwhile may have known other classes; the one that is live is asked, as a wrong word
        is likelier. While there is none any label is kept.

        Raises:
            Problem: the model knows no such class, or there is no record to keep it in.
        """
        served = self.live.current
        if served and told.label not in served.predictor.package.card.classes:
            detail = f"label: the model has no class {told.label[:60]!r}. GET /info lists its classes."
            raise Problem(422, "Invalid request", detail, reason="invalid_request")
        version = str(served.version) if served else None
        try:
            if self.journal is None:
                raise OSError("this server keeps no record (journal_mb=0)")
            await self._aside.call(self.journal.feedback, told.request_id, told.index, told.label, version)
        except OSError as error:
            detail = f"The label was not kept: {error.strerror or error}. Send it again later."
            raise Problem(503, "Not kept", detail, reason="not_kept", headers={"Retry-After": "60"}) from error

    async def reload(self) -> dict[str, Any]:
        """Look at the alias now, and say what came of it; see `answers.Reloaded`."""
        timeout_s = PATIENCE * self.settings.limits.deadline_s
        try:
            outcome = await asyncio.wait_for(asyncio.wrap_future(self.follower.ask()), timeout_s)
        except TimeoutError:
            outcome = Outcome(UNDER_WAY, reason="it takes longer: see model_version and reasons of GET /health")
        served = self.live.current
        return {
            "outcome": outcome.word,
            "reason": outcome.reason,
            "model_version": str(served.version) if served else None,
        }

    @property
    def is_ready(self) -> bool:
        """Whether pictures would be answered."""
        return self.live.current is not None and self.engine.is_alive and not self._is_failing

    @property
    def is_well(self) -> bool:
        """Whether every thread lives; if not, the process has to be started anew."""
        return self.engine.is_alive and self.follower.is_alive

    def health(self) -> dict[str, Any]:
        """Say how the server is; see `answers.Health`."""
        state, served = self.live.state(), self.live.current
        faults = [] if self.is_well else ["a thread ended: start the process anew"]
        faults += ["the model fails at every picture: the log says how"] if self._is_failing else []
        return {
            "status": "lost" if faults else state.status,
            "model": served.name if served else None,
            "model_version": str(served.version) if served else None,
            "alias": self.settings.alias,
            "found_by": served.found_by if served else None,
            "runtime": served.predictor.runtime if served else None,
            "precision": served.predictor.precision if served else None,
            "since": served.since.isoformat(timespec="seconds").replace("+00:00", "Z") if served else None,
            "reasons": [*state.reasons, *faults],
        }

    @property
    def _is_failing(self) -> bool:
        served = self.live.current
        return served is not None and self.engine.num_failures(served.predictor) >= MAX_FAILURES

    def card(self) -> dict[str, Any]:
        """Return what the model says of itself.

        Raises:
            Problem: there is no model.
        """
        served = self._served()
        card: dict[str, Any] = json.loads(served.predictor.package.card.to_json())
        return {"model": served.name, "model_version": str(served.version), **card}

    def _served(self) -> Served:
        served = self.live.current
        if served is None or not self.engine.is_alive:
            reasons = "; ".join(self.live.state().reasons)
            detail = f"No model is ready to answer. {reasons}".strip()
            raise Problem(503, "No model yet", detail, reason="starting", headers={"Retry-After": "5"})
        return served

    @contextmanager
    def _room(self, num_pictures: int) -> Iterator[None]:
        """Count pictures as in the building: the guard counts requests, which may bring many.

        Raises:
            Problem: there would be too many. Those of one request are let in whenever no others are there.
        """
        if self._num_pictures and self._num_pictures + num_pictures > self.settings.limits.waiting:
            raise overloaded()
        self._num_pictures += num_pictures
        try:
            yield
        finally:
            self._num_pictures -= num_pictures

    async def _answer(self, served: Served, pictures: Sequence[bytes]) -> Predictions:
        card = served.predictor.package.card
        with self.engine.coming():
            loads = [self._decoders.load(picture, card.image_size, card.resize) for picture in pictures]
            images = (await loads[0])[None] if len(loads) == 1 else np.stack(await _each(loads))
        return await self.engine.answer(served.predictor, images)


async def _each(loads: Sequence[Any]) -> list[NDArray[np.uint8]]:
    """Wait for several pictures; what is wrong with one says which."""
    found = await asyncio.gather(*loads, return_exceptions=True)
    for number, each in enumerate(found, 1):
        if isinstance(each, Problem):
            detail = f"Picture {number} of {len(found)}: {each.detail}"
            raise Problem(each.status, each.title, detail, reason=each.reason, headers=each.headers)
        if isinstance(each, BaseException):
            raise each
    return found  # type: ignore[return-value]  # no exception is left


def _json(answer: Mapping[str, Any]) -> bytes:
    """Return an answer as JSON.

    Raises:
        ValueError: it holds a number that is not finite, which JSON has no word for, nor a client any use.
    """
    return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()


def _rows(card: Card, predictions: Predictions) -> list[dict[str, Any]]:
    """Return what is said of each picture, as in `answers.Prediction`."""
    rows = []
    for probabilities, label, needs_review in zip(
        predictions.probabilities.round(DIGITS).tolist(),
        predictions.labels.tolist(),
        predictions.needs_review.tolist(),
        strict=True,
    ):
        name = card.classes[label]
        rows.append(
            {
                "class": name,
                "decision": REVIEW if needs_review else name,
                "probability": probabilities[label],
                "probabilities": dict(zip(card.classes, probabilities, strict=True)),
            }
        )
    return rows
