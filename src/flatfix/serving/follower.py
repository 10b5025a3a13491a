"""Follow an alias: whenever it points at another version, get that ready and let it answer."""

from __future__ import annotations

import logging
import random
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Self

from flatfix import memory
from flatfix.errors import UserError
from flatfix.inference.package import Package
from flatfix.inference.predictor import Predictor
from flatfix.registry.versions import DIGEST_TAG
from flatfix.serving import preparation
from flatfix.serving.last_good import Facts, LastGood
from flatfix.serving.live import LAST_GOOD, Live, Served
from flatfix.serving.outcome import (
    FETCH_FAILED,
    LOAD_FAILED,
    NOT_FOUND,
    REGISTRY_UNREACHABLE,
    SWAPPED,
    UNCHANGED,
    WRONG_ANSWERS,
    FailedError,
    Outcome,
    StoppedError,
    failing,
)
from flatfix.serving.source import Choice, RegistryUnreachableError, Source

if TYPE_CHECKING:
    from flatfix.serving.metrics import Metrics
    from flatfix.serving.settings import Settings

JITTER = 0.2  # of the time between two looks, so that the servers of a fleet do not all come at once
LONGEST_PAUSE_S = 300.0  # between two attempts at a version that could not be made to answer
MAX_DOUBLINGS = 10
JOIN_S = 1.0

_log = logging.getLogger("flatfix.serving")


class Follower:
    """Look at the registry from time to time, in a thread, and swap what answers.

    Whatever fails, what answers goes on answering. Where nothing does yet, the last good model is taken.
    """

    def __init__(self, source: Source, last_good: LastGood, live: Live, metrics: Metrics, settings: Settings) -> None:
        """Follow nothing yet.

        Args:
            source: says which version is asked for.
            last_good: keeps what went live.
            live: holds what answers.
            metrics: count outcomes, and show what answers.
            settings: runtime, precision, size of batches, cache, and the time between two looks.
        """
        self._source = source
        self._last_good = last_good
        self._live = live
        self._metrics = metrics
        self._settings = settings
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._has_looked = threading.Event()
        self._asked: SimpleQueue[Future[Outcome] | None] = SimpleQueue()  # None ends a pause, as a request does
        self._computing = threading.Lock()
        self._told: Outcome | None = None
        self._failure: _Failure | None = None
        self._kept: Facts | None = None  # of what this process has put into `last_good`, or taken from there
        self._not_kept: str | None = None  # why
        self._is_last_good_useless = False
        self._was_swapped = False

    def start(self) -> None:
        """Look for the first time, and then from time to time, without holding up the caller."""
        assert self._thread is None, "follows already"
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Return when the first look has come to something, a model or none."""
        self._has_looked.wait(timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Swap no more, and compute nothing; what hangs in a call to the registry is left to itself.

        Args:
            timeout_s: how long what is being computed is waited for.
        """
        self._stopping.set()
        self._has_looked.set()
        self._asked.put(None)
        if self._computing.acquire(timeout=timeout_s):
            self._computing.release()
        if self._thread is not None:
            self._thread.join(JOIN_S)
        preparation.put_back()

    def ask(self) -> Future[Outcome]:
        """Have the thread look at the registry now; return what will come of that, however long it takes."""
        asked: Future[Outcome] = Future()
        asked.set_running_or_notify_cancel()  # whoever no longer waits for it takes nothing back
        self._asked.put(asked)
        return asked

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs that looks."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        asked: list[Future[Outcome]] = []
        while not self._stopping.is_set():
            try:
                outcome = self.look(is_asked=bool(asked))
            except Exception:  # nothing may end this thread, and least of all unseen
                _log.exception("follower_failed")
                outcome = Outcome(LOAD_FAILED)
            for each in asked:
                each.set_result(outcome)
            if not self._has_looked.is_set():
                preparation.set_aside()
                self._has_looked.set()
            pause_s = self._settings.poll_s * random.uniform(1 - JITTER, 1 + JITTER)
            asked = self._pause(0 if outcome.word == SWAPPED else pause_s)  # 0: the alias may have moved on meanwhile

    def _pause(self, seconds: float) -> list[Future[Outcome]]:
        """Wait until the next look is due or asked for; return by whom."""
        asked = []
        with suppress(Empty):
            asked.append(self._asked.get(timeout=seconds))
            while True:
                asked.append(self._asked.get_nowait())
        return [each for each in asked if each]

    def look(self, *, is_asked: bool) -> Outcome:
        """Look at the registry once, in the one thread that does, and do what it says.

        Args:
            is_asked: whether to try a version again that failed lately.
        """
        try:
            outcome = self._follow(is_asked=is_asked)
        except FailedError as failed:
            outcome = failed.outcome
            with suppress(StoppedError):
                self._start_from_last_good()
        except StoppedError:
            outcome = Outcome(UNCHANGED, reason="the server stops")
        if not self._stopping.is_set():
            self._tell(outcome)
            self._tidy(outcome)
        return outcome

    def _follow(self, *, is_asked: bool) -> Outcome:
        """Look at the registry and do what it says.

        Raises:
            FailedError: that cannot be done.
            StoppedError: the server stops.
        """
        current, alias = self._live.current, self._source.alias
        choice = self._choose(current)
        if choice is None:
            if current is None:
                raise FailedError(NOT_FOUND, None, f"alias={alias}: the registered model has no version")
            reason = f"alias={alias}: it points at no version; version {current.version} goes on"
            return Outcome(NOT_FOUND, current.version, reason)
        version = choice.version
        if current is not None and version.tags[DIGEST_TAG] == current.predictor.package.digest:
            return self._settle(current, choice)
        failure = self._failure
        if failure and failure.is_of(choice) and time.monotonic() < failure.retry_at and not is_asked:
            return failure.outcome
        try:
            with failing(FETCH_FAILED, version.number):
                package = self._source.fetch(choice)
            predictor = self._ready(package, version.number, current)
        except FailedError as failed:
            self._failure = _Failure.of(choice, failed.outcome, failure, self._settings.poll_s)
            raise
        self._failure = None
        self._swap(self._served(predictor, choice))
        return Outcome(SWAPPED, version.number, self._note(choice.found_by))

    def _choose(self, current: Served | None) -> Choice | None:
        """Return the version that is asked for; before the registry has named any, another one will do."""
        try:
            is_first = current is None or current.found_by == LAST_GOOD
            return self._source.find_any() if is_first else self._source.find()
        except RegistryUnreachableError as error:
            raise FailedError(REGISTRY_UNREACHABLE, None, str(error)) from error
        except UserError as error:
            raise FailedError(NOT_FOUND, None, str(error)) from error

    def _settle(self, current: Served, choice: Choice) -> Outcome:
        """Return that nothing changed for requests, though the version may be known by another number or way now."""
        found = (choice.version.name, choice.version.number, choice.found_by)
        if found != (current.name, current.version, current.found_by):
            self._swap(replace(self._served(current.predictor, choice), since=current.since))
        self._failure = None
        return Outcome(UNCHANGED, choice.version.number, self._note(choice.found_by))

    def _ready(self, package: Package, version: int, current: Served | None) -> Predictor:
        """Return a model that has shown to answer as it should."""
        with self._computing:
            self._check()
            with failing(LOAD_FAILED, version):
                predictor = preparation.load(
                    package,
                    current.predictor if current else None,
                    runtime=self._settings.runtime,
                    precision=self._settings.precision,
                    cache_dir=self._settings.cache,
                )
                preparation.warm(predictor, self._settings.batch_size, self._check)
            with failing(WRONG_ANSWERS, version):
                predictor.prove()
            return predictor

    def _start_from_last_good(self) -> None:
        """Let the last good model answer where nothing does; once it has failed to, never again."""
        if self._live.current is not None or self._is_last_good_useless or (kept := self._last_good.open()) is None:
            return
        package, facts = kept
        try:
            predictor = self._ready(package, facts.version, None)
        except FailedError as failed:
            self._is_last_good_useless = True
            fields = {"version": facts.version, "reason": failed.outcome.reason}
            _log.error("last_good_unusable", extra={"fields": fields})
            return
        self._kept = facts
        alias = self._source.alias
        self._swap(Served(predictor, facts.name, facts.version, facts.run_id, alias, LAST_GOOD, datetime.now(UTC)))

    def _served(self, predictor: Predictor, choice: Choice) -> Served:
        version = choice.version
        return Served(
            predictor,
            version.name,
            version.number,
            version.run_id,
            self._source.alias,
            choice.found_by,
            datetime.now(UTC),
        )

    def _swap(self, served: Served) -> None:
        with self._computing:
            self._check()
            self._live.swap(served)
        predictor = served.predictor
        self._metrics.show_model(
            name=served.name,
            version=str(served.version),
            alias=served.alias,
            runtime=predictor.runtime,
            precision=predictor.precision,
        )
        fields = {"name": served.name, "version": served.version, "found_by": served.found_by}
        fields |= {"runtime": predictor.runtime, "precision": predictor.precision}
        _log.info("model_live", extra={"fields": fields})

    def _check(self) -> None:
        if self._stopping.is_set():
            raise StoppedError

    def _note(self, found_by: str) -> str | None:
        if found_by == self._source.alias:
            return None
        return f"alias={self._source.alias}: it points at no version; {found_by} is served"

    def _tell(self, outcome: Outcome) -> None:
        """Count an outcome, and say it where it is not what was said last."""
        self._metrics.reloads.labels(outcome.word).inc()
        self._live.tell(outcome.reason, is_degraded=outcome.is_fault)
        self._metrics.degraded.set(self._live.state().status == "degraded")
        before, self._told = self._told, outcome
        if outcome.reason and outcome != before:
            fields = {"outcome": outcome.word, "version": outcome.version, "reason": outcome.reason}
            _log.log(logging.ERROR if outcome.is_fault else logging.WARNING, "reload", extra={"fields": fields})
        elif before and before.is_fault and not outcome.is_fault:
            _log.info("reload_recovered", extra={"fields": {"outcome": outcome.word, "version": outcome.version}})

    def _tidy(self, outcome: Outcome) -> None:
        """Keep what went live, and let go of what did before; none of it is worth failing for."""
        current = self._live.current
        if outcome.word not in (SWAPPED, UNCHANGED) or current is None:
            return
        self._keep(current)
        is_swapped = outcome.word == SWAPPED
        if is_swapped or self._was_swapped:  # requests in flight may have held the old model until now
            memory.give_back()
        self._was_swapped = is_swapped
        if is_swapped:
            with suppress(OSError):
                self._source.forget_unused()

    def _keep(self, current: Served) -> None:
        package = current.predictor.package
        facts = Facts(current.name, current.version, current.run_id, package.digest)
        if self._kept == facts == self._last_good.facts():  # another process may have kept another one since
            return
        try:
            self._last_good.keep(package, facts)
            self._kept, self._not_kept = facts, None
        except (OSError, UserError) as error:
            reason = getattr(error, "strerror", None) or str(error)  # without the name of a temporary file
            if reason != self._not_kept:
                _log.warning("last_good_not_kept", extra={"fields": {"version": current.version, "reason": reason}})
            self._not_kept = reason


@dataclass(frozen=True, slots=True)
class _Failure:
    """Remember a version that could not be made to answer, so as not to try again with every look."""

    key: tuple[str, ...]
    outcome: Outcome
    num_attempts: int
    retry_at: float

    @classmethod
    def of(cls, choice: Choice, outcome: Outcome, before: Self | None, poll_s: float) -> Self:
        num_attempts = before.num_attempts + 1 if before and before.is_of(choice) else 1
        pause_s = min(poll_s * 2 ** min(num_attempts, MAX_DOUBLINGS), LONGEST_PAUSE_S)
        return cls(_key(choice), outcome, num_attempts, time.monotonic() + pause_s)

    def is_of(self, choice: Choice) -> bool:
        return self.key == _key(choice)


def _key(choice: Choice) -> tuple[str, ...]:
    version = choice.version
    return version.name, str(version.number), version.tags[DIGEST_TAG]
