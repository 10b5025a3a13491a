from __future__ import annotations

from datetime import UTC, datetime

from flatfix.inference.package import Package
from flatfix.inference.predictor import Predictor
from flatfix.serving.live import Health, Live, Served


def served(package: Package, version: int = 1) -> Served:
    predictor = Predictor(package, "onnxruntime", "fp32", num_threads=1)
    return Served(predictor, "tires", version, "5b0f", "production", "production", datetime.now(UTC))


def test_it_starts_without_a_model_and_is_well_once_there_is_one(packages: tuple[Package, Package]) -> None:
    live = Live()
    assert (live.current, live.state()) == (None, Health("starting"))
    live.tell("the registry does not answer", is_degraded=True)
    assert live.state() == Health("starting", ("the registry does not answer",))
    live.tell(None)
    first = served(packages[0])
    live.swap(first)
    assert live.current is first
    assert live.state() == Health("ok")


def test_who_took_a_model_before_a_swap_keeps_it(packages: tuple[Package, Package]) -> None:
    live = Live()
    live.swap(served(packages[0]))
    taken = live.current
    live.swap(served(packages[1], 2))
    assert taken and live.current
    images = packages[0].reference().images
    assert (taken.predictor.predict(images).labels != live.current.predictor.predict(images).labels).any()
    assert (taken.version, live.current.version) == (1, 2)


def test_a_reason_degrades_only_when_it_is_said_to(packages: tuple[Package, Package]) -> None:
    live = Live()
    live.swap(served(packages[0]))
    live.tell("staging is served")
    assert live.state() == Health("ok", ("staging is served",))
    live.tell("the registry does not answer", is_degraded=True)
    assert live.state() == Health("degraded", ("the registry does not answer",))
