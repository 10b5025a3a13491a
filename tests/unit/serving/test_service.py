from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from flatfix.inference.predictor import Predictions
from flatfix.registry.versions import Version
from flatfix.serving import settings
from flatfix.serving.answers import Feedback
from flatfix.serving.live import Served
from flatfix.serving.metrics import Metrics
from flatfix.serving.problems import Problem
from flatfix.serving.service import MAX_FAILURES, Service
from tests.helpers.cards import make_card
from tests.helpers.images import colours, encode
from tests.helpers.serving import Shelf

BOUND_S = 20
PICTURE = encode(colours(40, 50), "JPEG")


class Constant:
    """A model that answers every picture alike."""

    runtime, precision = "onnxruntime", "fp32"

    def __init__(self, evidence: float = 2.0) -> None:
        self.package = SimpleNamespace(card=make_card())
        self.evidence = evidence

    def predict(self, images: np.ndarray) -> Predictions:
        logits = np.tile(np.array([0, self.evidence], np.float32), (len(images), 1))
        return Predictions.of(logits, logits, self.package.card.decision)


def serving(folder: Path, scenario: Callable[[Service], Awaitable[None]], waiting: int = 128) -> None:
    """Run a scenario with a service that follows no registry."""
    chosen = settings.Settings.of(settings.read(None))
    limits = replace(chosen.limits, waiting=waiting)
    chosen = replace(chosen, uri=f"sqlite:///{folder}/none.db", output=folder, cache=folder, limits=limits)

    async def main() -> None:
        service = Service(chosen, Metrics())
        service.engine.start(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(scenario(service), BOUND_S)
        finally:
            await asyncio.to_thread(service.engine.stop, BOUND_S)

    asyncio.run(main())


def show(service: Service, predictor: Constant) -> None:
    served = Served(predictor, "tires", 7, "5b0f", "production", "production", datetime.now(UTC))  # type: ignore[arg-type]
    service.live.swap(served)


def test_pictures_are_refused_where_more_are_in_the_building_than_may_wait_however_few_requests(tmp_path: Path):
    async def scenario(service: Service) -> None:
        show(service, Constant())
        first = asyncio.create_task(service.predict([PICTURE] * 3, "a"))
        await asyncio.sleep(0)
        for asked in (2, 9):
            with pytest.raises(Problem) as raised:
                await service.predict([PICTURE] * asked, "b")
            assert (raised.value.status, raised.value.reason) == (503, "overloaded")
        await asyncio.gather(first, service.explain(PICTURE, "c"))

        whole = json.loads(await service.predict([PICTURE] * 9, "d"))  # nobody else is there, nor left behind
        assert len(whole["predictions"]) == 9

    serving(tmp_path, scenario, waiting=4)


def test_pictures_that_were_refused_or_left_make_room(tmp_path: Path):
    async def scenario(service: Service) -> None:
        show(service, Constant())
        with pytest.raises(Problem, match="Picture 2 of 2"):
            await service.predict([PICTURE, b"no picture"], "a")
        left = asyncio.create_task(service.predict([PICTURE] * 2, "b"))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
        first = asyncio.create_task(service.predict([PICTURE], "c"))
        await asyncio.gather(first, service.predict([PICTURE], "d"))

    serving(tmp_path, scenario, waiting=2)


@pytest.mark.filterwarnings("ignore:invalid value")  # which is what NumPy says of them
@pytest.mark.parametrize("evidence", [np.nan, np.inf])
def test_numbers_that_are_none_are_neither_answered_nor_counted_nor_kept(tmp_path: Path, evidence: float):
    async def scenario(service: Service) -> None:
        assert service.journal
        show(service, Constant(evidence))
        with pytest.raises(ValueError, match="JSON"):
            await service.predict([PICTURE], "a")
        with pytest.raises(ValueError, match="JSON"):
            await service.explain(PICTURE, "b")
        assert service.journal.flush(5)
        assert not [*(tmp_path / "serving").glob("answers-*")]
        assert "predicted_class_total{" not in service.metrics.render()[0].decode()

    serving(tmp_path, scenario)


def test_a_label_is_kept_while_there_is_no_model_and_asked_for_its_class_while_there_is_one(tmp_path: Path):
    async def scenario(service: Service) -> None:
        await service.keep(Feedback(request_id="a", label="of the model before"))
        show(service, Constant())
        await service.keep(Feedback(request_id="b", label="ok"))
        with pytest.raises(Problem, match="no class 'okk'"):
            await service.keep(Feedback(request_id="c", label="okk"))

    serving(tmp_path, scenario)
    lines = next((tmp_path / "serving").glob("feedback-*.jsonl")).read_text().splitlines()
    assert [json.loads(line)["live_version"] for line in lines] == [None, "7"]


def test_a_model_that_fails_at_every_picture_is_lost_until_it_answers_one(two: tuple[Shelf, list[Version]]) -> None:
    shelf, _ = two
    service = Service(shelf.settings(journal_mb=0), Metrics())

    async def scenario() -> None:
        await service.start()
        while service.live.current is None:
            await asyncio.sleep(0.01)
        model = service.live.current.predictor
        for _ in range(MAX_FAILURES):
            assert (service.is_ready, service.health()["status"]) == (True, "ok")
            with pytest.raises(ValueError, match="need pictures"):
                await service.engine.answer(model, np.zeros((1, 5, 5, 3), np.uint8))
        health = service.health()
        assert (service.is_ready, service.is_well, health["status"]) == (False, True, "lost")
        assert health["reasons"] == ["the model fails at every picture: the log says how"]
        await service.engine.answer(model, model.package.reference().images[:1])
        assert (service.is_ready, service.health()["status"], service.health()["reasons"]) == (True, "ok", [])
        await service.stop()

    asyncio.run(asyncio.wait_for(scenario(), BOUND_S))
