"""Clients that keep asking a server what is in pictures, and what it answered them."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from flatfix.inference.decode import load
from flatfix.inference.package import Package
from flatfix.inference.predictor import Predictor
from flatfix.serving.client import Client, NoAnswerError
from tests.helpers.images import colours, encode
from tests.helpers.server import wait_until

ROUNDING = 2e-6  # of probabilities of six digits, and of sums that a batch of another size adds up in another order
ANSWER_TIMEOUT_S = 60


class Said(NamedTuple):
    """Hold what was said of one picture."""

    label: str
    decision: str
    probabilities: tuple[float, ...]


def some_pictures(count: int = 8) -> list[bytes]:
    """Return JPEGs of different contents and sizes."""
    return [encode(colours(40 + 8 * seed, 56 + 4 * seed, seed), "JPEG", quality=90) for seed in range(count)]


def offline(package: Package, runtime: str, pictures: Sequence[bytes]) -> list[Said]:
    """Return what a package says of pictures without a server."""
    card = package.card
    images = np.stack([load(picture, card.image_size, card.resize) for picture in pictures])
    found = Predictor(package, runtime, "fp32").predict(images)
    return [
        Said(card.classes[label], "review" if needs_review else card.classes[label], tuple(probabilities))
        for label, needs_review, probabilities in zip(
            found.labels, found.needs_review, found.probabilities.tolist(), strict=True
        )
    ]


class Callers:
    """Have clients post one picture after another until the block ends.

    Attributes:
        failures: status and problem, or the reason that there was no answer, of each request that got no prediction.
        versions: that answered requests, in the order in which these began; who began before the first answer of a
            version may still be answered by the one before it.
    """

    def __init__(self, url: str, pictures: Sequence[bytes], num_clients: int = 2, pause_s: float = 0.0) -> None:
        self.failures: list[str] = []
        self.versions: list[str] = []
        self._said: Counter[tuple[str, int, Said]] = Counter()
        self._client = Client(url)
        self._pictures = pictures
        self._num_clients = num_clients
        self._pause_s = pause_s
        self._since = 0.0  # the first answer of the last of the versions
        self._is_over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask_all()))

    @property
    def num_answers(self) -> int:
        """Count the predictions so far."""
        return sum(self._said.copy().values())

    def wait_for_more(self, count: int = 20) -> None:
        """Return when so many more requests have ended; those under way may have begun before."""
        until = self.num_answers + len(self.failures) + count
        wait_until(
            lambda: self.num_answers + len(self.failures) >= until, ANSWER_TIMEOUT_S, f"{count} more requests to end"
        )

    def check(self, expected: Mapping[str, Sequence[Said]]) -> None:
        """Check that no request failed, and that each answer is what the version that it names says offline.

        Args:
            expected: what each version says of each picture; no two versions the same of any.
        """
        assert self.failures == []
        assert self._client.num_repeated == 0, "the server closed connections that were in use"
        assert set(self.versions) == set(expected)
        for one, other in itertools.combinations(expected.values(), 2):
            for mine, theirs in zip(one, other, strict=True):
                assert _difference(mine, theirs) > 100 * ROUNDING, "the versions cannot be told apart"
        for version, picture, said in self._said:
            right = expected[version][picture]
            assert (said.label, said.decision) == (right.label, right.decision), (version, picture)
            assert _difference(said, right) < ROUNDING, (version, picture, said, right)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        self._thread.join()

    async def _ask_all(self) -> None:
        numbers = itertools.cycle(range(len(self._pictures)))
        async with self._client:
            await asyncio.gather(*(self._ask_on(numbers) for _ in range(self._num_clients)))

    async def _ask_on(self, numbers: itertools.cycle[int]) -> None:
        while not self._is_over:
            number, begun = next(numbers), time.perf_counter()
            try:
                answer = await self._client.post("/predict", self._pictures[number], "image/jpeg")
            except NoAnswerError as error:
                self.failures.append(f"{error.reason}: {error}")
            else:
                if answer.status == 200:
                    self._note(number, begun, json.loads(answer.body))
                else:
                    self.failures.append(f"{answer.status}: {answer.body.decode()}")
            await asyncio.sleep(self._pause_s)

    def _note(self, number: int, begun: float, answer: dict[str, Any]) -> None:
        (row,) = answer["predictions"]
        version = answer["model_version"]
        self._said[version, number, Said(row["class"], row["decision"], tuple(row["probabilities"].values()))] += 1
        is_late = begun < self._since and self.versions[-2:-1] == [version]
        if self.versions[-1:] != [version] and not is_late:
            self.versions.append(version)
            self._since = time.perf_counter()


def _difference(one: Said, other: Said) -> float:
    return max(abs(mine - theirs) for mine, theirs in zip(one.probabilities, other.probabilities, strict=True))
