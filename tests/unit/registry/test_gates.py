from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flatfix.data.store import LocalStore
from flatfix.data.version import DatasetVersion
from flatfix.errors import UserError
from flatfix.registry.exam import Place, UnfitError, sit
from flatfix.registry.gates import check_gates, run_gates
from flatfix.registry.journal import GateResult
from flatfix.registry.versions import Version
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.shades import CLASSES, finished_run, publish_shades, registered

pytestmark = pytest.mark.usefixtures("undrawn")

ALL = {
    "offline_evaluation": True,
    "not_worse": True,
    "better": False,
    "alpha": 0.05,
    "max_class_drop": 0.1,
    "max_calibration_error": 0.2,
    "max_package_megabytes": 100.0,
    "max_latency_ms": 1000.0,
    "self_test": True,
}
OFF = {**dict.fromkeys(ALL), **dict.fromkeys(("offline_evaluation", "not_worse", "better", "self_test"), False)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    store = LocalStore(folder / "store")
    return Place(fresh_database(folder), "flatfix", store, folder / "cache", folder / "evaluations")


@pytest.fixture(scope="module")
def good(place: Place) -> Version:
    return registered(place.uri, finished_run(place.uri, publish_shades(place.store.root), noise=0.2))


@pytest.fixture(scope="module")
def bad(place: Place, good: Version) -> Version:
    return registered(place.uri, finished_run(place.uri, publish_shades(place.store.root), noise=2.0))


def results(options: dict[str, object], *arguments: object, metric: str = "f1") -> dict[str, GateResult]:
    found = run_gates(options, metric, *arguments)  # type: ignore[arg-type]
    assert [gate.name for gate in found] == [name for name in ALL if name != "alpha"]
    return {gate.name: gate for gate in found}


def verdicts(found: dict[str, GateResult]) -> dict[str, bool | None]:
    return {name: gate.is_passed for name, gate in found.items()}


def test_the_first_version_has_nothing_to_compare_with_and_passes_the_rest(good: Version, place: Place) -> None:
    found = results(ALL, good, None, place)
    assert verdicts(found) == {
        "offline_evaluation": True,
        "not_worse": None,
        "better": None,
        "max_class_drop": None,
        "max_calibration_error": True,
        "max_package_megabytes": True,
        "max_latency_ms": True,
        "self_test": True,
    }
    assert found["not_worse"].detail == "no version is live yet"
    assert found["better"].detail == "off"
    assert found["offline_evaluation"].detail.endswith(" on 240 test pictures of shades/v1")
    assert found["offline_evaluation"].detail.startswith(f"f1 {good.test['f1']:.4f}, accuracy ")
    assert found["self_test"].detail.startswith("32 reference pictures answered as recorded (")


@pytest.mark.parametrize("metric", ["accuracy", "f1", "loss"])
def test_a_worse_version_is_refused_with_the_numbers(good: Version, bad: Version, place: Place, metric: str) -> None:
    found = results(ALL, bad, good, place, metric=metric)
    assert verdicts(found) | {"max_calibration_error": None} == {
        "offline_evaluation": True,
        "not_worse": False,
        "better": None,
        "max_class_drop": False,
        "max_calibration_error": None,
        "max_package_megabytes": True,
        "max_latency_ms": True,
        "self_test": True,
    }
    for version in (good, bad):
        assert f"{version.test[metric]:.4f}"[:5] in found["not_worse"].detail
    assert "240" in found["not_worse"].detail
    assert re.match(
        r"class \w+ loses 0\.[1-9]\d*, at most 0\.1 \(0\.\d+ -> 0\.\d+ on 120 pictures\)",
        found["max_class_drop"].detail,
    )


def test_a_better_version_passes_and_an_equal_one_is_not_better(good: Version, bad: Version, place: Place) -> None:
    found = results({**ALL, "better": True}, good, bad, place)
    assert (found["not_worse"].is_passed, found["better"].is_passed, found["max_class_drop"].is_passed) == (True,) * 3
    same = results({**ALL, "better": True}, good, good, place)
    assert (same["not_worse"].is_passed, same["better"].is_passed, same["max_class_drop"].is_passed) == (
        True,
        False,
        True,
    )


@pytest.mark.parametrize(
    ("option", "bound"),
    [("max_calibration_error", 0.0001), ("max_package_megabytes", 0.01), ("max_latency_ms", 0.0001)],
)
def test_a_bound_refuses_what_is_above_it(good: Version, place: Place, option: str, bound: float) -> None:
    found = results({**ALL, option: bound}, good, None, place)
    assert [name for name, gate in found.items() if gate.is_passed is False] == [option]
    assert f", at most {bound:g}" in found[option].detail


def test_gates_that_are_off_ask_for_nothing(good: Version, place: Place, tmp_path: Path) -> None:
    found = results(OFF, good, None, replace(place, store=LocalStore(tmp_path)))
    assert {(gate.is_passed, gate.detail) for gate in found.values()} == {(None, "off")}


def test_gates_that_need_the_evaluation_are_refused_without_it() -> None:
    with pytest.raises(UserError, match=r"offline_evaluation=false: gates.not_worse, gates.max_class_drop, "):
        check_gates({**ALL, "offline_evaluation": False}, "f1")
    with pytest.raises(UserError, match=r"metric=top5_accuracy: the paired tests of gates.not_worse .* know loss, "):
        check_gates(ALL, "top5_accuracy")
    check_gates({**ALL, "not_worse": False}, "top5_accuracy")
    check_gates(OFF, "f1")


def test_a_store_without_the_dataset_is_named(good: Version, place: Place, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shades"):
        run_gates(ALL, "f1", good, None, replace(place, store=LocalStore(tmp_path)))


def test_an_evaluation_is_run_once(good: Version, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    sit([good], place)
    capsys.readouterr()
    sit([good], place)
    assert "Predicting" not in capsys.readouterr().out


def trained_on(dataset: DatasetVersion, version: Version) -> Version:
    """Return the version as if it had been trained on that dataset version."""
    manifest = dataset.manifest
    tags = {"dataset_name": manifest.name, "dataset_version": manifest.version, "dataset_digest": manifest.digest}
    return replace(version, tags={**version.tags, **tags})


def ids_of(dataset: DatasetVersion, *splits: str) -> set[str]:
    index = dataset.index(["id", "split"]).to_pydict()
    return {id for id, split in zip(index["id"], index["split"], strict=True) if split in splits}


def test_pictures_that_either_version_has_seen_are_left_out(
    good: Version, bad: Version, place: Place, tmp_path: Path
) -> None:
    old, new = (
        publish_shades(tmp_path, "v1", num_pictures=200),
        publish_shades(tmp_path, "v2", num_pictures=200, split_seed=1),
    )
    elsewhere = replace(place, store=old.store)
    asked, seen = ids_of(new, "test"), ids_of(old, "train", "val")
    alone = sit([trained_on(new, good)], elsewhere)
    assert (set(alone.answers[0].ids), alone.notes) == (asked, ())
    exam = sit([trained_on(new, good), trained_on(old, bad)], elsewhere)
    assert 0 < len(asked & seen) < len(asked)
    assert [set(answers.ids) for answers in exam.answers] == [asked - seen, asked - seen]
    assert exam.notes == (f"{len(asked & seen)} left out, seen in training",)
    unknown = sit([trained_on(new, good), bad], elsewhere)
    assert unknown.notes == ("what version 2 saw is unknown, as the store lacks its shades/v1",)


def test_a_version_that_has_seen_every_picture_is_not_judged(good: Version, place: Place, tmp_path: Path) -> None:
    old = publish_shades(tmp_path, "v1", num_pictures=60, test_fraction=0)
    publish_shades(tmp_path, "v2", num_pictures=60)
    with pytest.raises(UnfitError, match="every test picture of shades/v2 was seen in training"):
        sit([trained_on(old, good)], replace(place, store=old.store))


def test_a_class_that_a_version_does_not_know_refuses_it(good: Version, place: Place, tmp_path: Path) -> None:
    dataset = publish_shades(tmp_path, num_pictures=60, classes=(*CLASSES, "worn"))
    found = results({**ALL, "better": True}, good, good, replace(place, store=dataset.store))
    assert found["offline_evaluation"].is_passed is False
    assert found["offline_evaluation"].detail == "version 1 does not know worn of shades/v1"
    assert found["not_worse"] == GateResult("not_worse", None, "version 1 does not know worn of shades/v1")
    assert found["better"] == GateResult("better", False, "version 1 does not know worn of shades/v1")


def test_a_package_that_was_changed_is_refused(good: Version, place: Place, tmp_path: Path) -> None:
    shutil.copytree(good.source.removeprefix("file://"), tmp_path / "package")
    model = tmp_path / "package/model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    found = results(ALL, replace(good, source=str(tmp_path / "package")), None, place)
    assert found["self_test"].is_passed is False
    assert str(model) in found["self_test"].detail
