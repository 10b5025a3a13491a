from __future__ import annotations

import logging
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatfix.inference.package import MODEL, Package
from flatfix.registry.versions import Version
from flatfix.serving.follower import Follower
from flatfix.serving.last_good import LastGood
from flatfix.serving.live import Live, Served
from flatfix.serving.metrics import Metrics
from flatfix.serving.source import Choice, Source
from tests.helpers.packages import permits
from tests.helpers.server import free_ports, wait_until
from tests.helpers.serving import NAME, Shelf, empty_shelf, resealed, wrong
from tests.helpers.small_disk import mounted

Promoted = tuple[Shelf, list[Version]]
Records = list[logging.LogRecord]
LONG_S = 3600.0  # between two looks, where only those that a test asks for are to happen
WAIT_S = 30.0
STOP_S = 5.0


class Serving:
    """A follower with what it works on."""

    def __init__(self, shelf: Shelf, **changes: Any) -> None:
        chosen = {"runtime": "onnxruntime", "precision": "fp32", "poll_s": LONG_S, **changes}
        self.settings = shelf.settings(**chosen)
        self.live = Live()
        self.metrics = Metrics()
        uri, name, alias = self.settings.uri, self.settings.name, self.settings.alias
        self.source = Source(uri, name, alias, self.settings.cache)
        self.last_good = LastGood.of(shelf.folder / "last", shelf.uri, name, alias)
        self.follower = Follower(self.source, self.last_good, self.live, self.metrics, self.settings)

    def look(self) -> tuple[str, int | None]:
        """Look at the registry; return the outcome and the version that answers then."""
        return self.follower.look(is_asked=True).word, self.version

    @property
    def version(self) -> int | None:
        return self.live.current.version if self.live.current else None

    @property
    def served(self) -> Served:
        assert self.live.current is not None
        return self.live.current

    @property
    def status(self) -> str:
        return self.live.state().status

    def count(self, outcome: str) -> float:
        line = f'model_reloads_total{{outcome="{outcome}"}} '
        text = self.metrics.render()[0].decode()
        return sum(float(each.removeprefix(line)) for each in text.splitlines() if each.startswith(line))

    def shown(self, name: str) -> list[str]:
        return [line for line in self.metrics.render()[0].decode().splitlines() if line.startswith(name)]

    def unreachable(self) -> Serving:
        """Return another server of the same alias, started while the registry is down."""
        other = Serving.__new__(Serving)
        other.__dict__.update(self.__dict__)
        other.live, other.metrics = Live(), Metrics()
        other.source = Source(f"http://127.0.0.1:{free_ports(1)[0]}", None, "production", self.settings.cache)
        other.follower = Follower(other.source, self.last_good, other.live, other.metrics, self.settings)
        return other


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", megabytes=1) as disk:
        yield disk


def database(shelf: Shelf) -> Path:
    return Path(shelf.uri.removeprefix("sqlite:///"))


def answers_of(package: Package, serving: Serving) -> bool:
    reference = package.reference()
    found = serving.served.predictor.predict(reference.images).logits
    return bool(np.abs(found - reference.logits).max() <= package.card.parity.tolerance)


def test_a_promotion_and_a_rollback_swap_what_answers(two: Promoted, packages: tuple[Package, Package]) -> None:
    shelf, (first, second) = two
    serving = Serving(shelf)
    assert (serving.version, serving.status) == (None, "starting")
    for version, package in ((first, packages[0]), (second, packages[1]), (first, packages[0])):
        shelf.point("production", version)
        assert serving.look() == ("swapped", version.number)
        assert answers_of(package, serving)
        assert serving.look() == ("unchanged", version.number)
        (line,) = serving.shown("model_version_info")
        assert f'version="{version.number}"' in line
        kept = serving.last_good.open()
        assert kept and kept[1].version == version.number
    assert (serving.count("swapped"), serving.count("unchanged"), serving.status) == (3, 3, "ok")


def test_the_alias_is_followed_without_being_told(two: Promoted) -> None:
    shelf, (first, second) = two
    serving = Serving(shelf, poll_s=0.05)
    serving.follower.start()
    wait_until(lambda: serving.version == first.number, WAIT_S, "the first version")
    shelf.point("production", second)
    wait_until(lambda: serving.version == second.number, WAIT_S, "the second version")
    assert serving.follower.is_alive
    serving.follower.stop(STOP_S)
    assert not serving.follower.is_alive


def test_an_empty_alias_is_made_up_for_at_the_start_and_an_alias_removed_later_changes_nothing(two: Promoted) -> None:
    shelf, (first, second) = two
    shelf.clear("production")
    serving = Serving(shelf)
    assert serving.look() == ("swapped", second.number)
    assert (serving.served.found_by, serving.status) == ("newest", "ok")
    assert serving.live.state().reasons == ("alias=production: it points at no version; newest is served",)
    shelf.point("production", first)
    assert serving.look() == ("swapped", first.number)
    assert (serving.served.found_by, serving.live.state().reasons) == ("production", ())
    shelf.clear("production")
    shelf.point("staging", second)
    assert serving.look() == ("not_found", first.number)
    assert serving.status == "ok"


def test_a_registry_that_goes_down_later_degrades_the_server_until_it_is_back(two: Promoted, logged: Records) -> None:
    shelf, (first, second) = two
    serving = Serving(shelf)
    serving.look()
    hidden = database(shelf).rename(shelf.folder / "hidden")
    for _ in range(3):
        assert serving.look() == ("registry_unreachable", first.number)
    assert (serving.status, serving.shown("model_degraded")) == ("degraded", ["model_degraded 1.0"])
    assert [record.getMessage() for record in logged] == ["model_live", "reload"]
    hidden.rename(database(shelf))
    shelf.point("production", second)
    assert serving.look() == ("swapped", second.number)
    assert (serving.status, serving.shown("model_degraded")) == ("ok", ["model_degraded 0.0"])


def test_a_server_starts_from_the_last_good_model_while_the_registry_is_down(two: Promoted) -> None:
    shelf, (first, second) = two
    serving = Serving(shelf)
    serving.look()
    hidden = database(shelf).rename(shelf.folder / "hidden")
    again = Serving(shelf)
    assert again.look() == ("registry_unreachable", first.number)
    assert (again.served.found_by, again.status) == ("last good", "degraded")
    hidden.rename(database(shelf))
    predictor = again.served.predictor
    assert again.look() == ("unchanged", first.number)
    assert (again.served.found_by, again.status) == ("production", "ok")
    assert again.served.predictor is predictor
    shelf.point("production", second)
    assert again.look() == ("swapped", second.number)


@pytest.mark.slow
@pytest.mark.parametrize("is_kept", [False, True])
def test_without_a_last_good_model_that_works_the_server_waits_for_the_registry(two: Promoted, is_kept: bool) -> None:
    shelf, (first, _) = two
    serving = Serving(shelf)
    if is_kept:
        serving.look()
        (serving.last_good.folder / first.tags["package_digest"] / MODEL).write_bytes(b"damaged")
    again = serving.unreachable()
    assert again.look() == ("registry_unreachable", None)
    assert again.status == "starting"
    assert "MLflow cannot be used there" in again.live.state().reasons[0]


def test_an_empty_registry_is_waited_for(packages: tuple[Package, Package], tmp_path: Path) -> None:
    shelf = empty_shelf(tmp_path)
    serving = Serving(shelf)
    assert serving.look() == ("not_found", None)
    assert "nothing is registered" in serving.live.state().reasons[0]
    version = shelf.add(packages[0])
    assert serving.look() == ("swapped", version.number)


def damage(package: Package, folder: Path) -> Package:
    return package


def unloadable(package: Package, folder: Path) -> Package:
    shutil.copytree(package.folder, folder)
    (folder / MODEL).write_bytes(b"no model")
    return resealed(folder)


@pytest.mark.parametrize(
    ("make", "after", "outcome", "reason"),
    [
        (damage, lambda folder: (folder / MODEL).write_bytes(b"damaged"), "damaged", "changed since"),
        (damage, shutil.rmtree, "damaged", r"no card\.json"),
        (unloadable, lambda folder: None, "load_failed", "does not run"),
        (wrong, lambda folder: None, "wrong_answers", "32 of the 32 reference pictures"),
    ],
    ids=["damaged", "gone", "no model", "wrong"],
)
@pytest.mark.slow
def test_a_version_that_cannot_answer_is_told_once_and_what_answers_goes_on(
    packages: tuple[Package, Package],
    tmp_path: Path,
    logged: Records,
    make: Callable[[Package, Path], Package],
    after: Callable[[Path], object],
    outcome: str,
    reason: str,
) -> None:
    shelf = empty_shelf(tmp_path)
    good, bad = shelf.add(packages[0]), shelf.add(make(packages[1], tmp_path / "bad"))
    after(shelf.artifacts(bad))
    shelf.point("production", good)
    serving = Serving(shelf)
    serving.look()
    shelf.point("production", bad)
    for _ in range(2):
        assert serving.look() == (outcome, good.number)
    assert (serving.status, serving.count(outcome)) == ("degraded", 2)
    lines = [record for record in logged if record.getMessage() == "reload"]
    assert len(lines) == 1 and lines[0].levelno == logging.ERROR
    fields = lines[0].__dict__["fields"]
    assert (fields["outcome"], fields["version"]) == (outcome, bad.number)
    assert re.search(reason, fields["reason"])
    kept = serving.last_good.open()
    assert kept and kept[1].version == good.number
    again = Serving(shelf)  # a restart meets the bad version first
    assert again.look() == (outcome, good.number)
    assert (again.served.found_by, again.status) == ("last good", "degraded")
    shelf.point("production", good)
    assert serving.look() == again.look() == ("unchanged", good.number)
    assert serving.status == again.status == "ok"


@pytest.mark.slow
def test_a_version_that_failed_is_not_tried_with_every_look_unless_it_is_asked_for(
    packages: tuple[Package, Package], tmp_path: Path
) -> None:
    shelf = empty_shelf(tmp_path)
    versions = [shelf.add(packages[0]), shelf.add(packages[1])]
    shelf.point("production", versions[0])
    serving = Serving(shelf, poll_s=0.02)
    artifacts = shelf.artifacts(versions[1])
    hidden = artifacts.rename(artifacts.with_name("hidden"))
    fetched: list[int] = []
    fetch = serving.source.fetch

    def counted(choice: Choice) -> Package:
        fetched.append(choice.version.number)
        return fetch(choice)

    serving.source.fetch = counted  # type: ignore[method-assign]
    serving.follower.start()
    wait_until(lambda: serving.version == 1, WAIT_S, "the first version")
    shelf.point("production", versions[1])
    wait_until(lambda: serving.count("damaged") >= 20, WAIT_S, "twenty looks")
    assert fetched.count(2) <= 7  # each pause is twice the one before
    hidden.rename(artifacts)
    assert serving.follower.ask().result(WAIT_S).word in ("swapped", "unchanged")
    assert serving.version == 2
    serving.follower.stop(STOP_S)


def test_an_alias_that_moves_to_what_flatfix_did_not_register_changes_nothing(two: Promoted) -> None:
    shelf, (first, _) = two
    serving = Serving(shelf)
    serving.look()
    shelf.client.create_model_version(NAME, "file:///nowhere")
    shelf.point("production", 3)
    assert serving.look() == ("not_found", first.number)
    assert serving.status == "degraded"
    assert "version 3 of tires, which Flatfix did not register" in serving.live.state().reasons[0]


@pytest.mark.slow
def test_a_version_of_other_classes_and_without_the_permit_goes_live_all_the_same(
    packages: tuple[Package, Package], tmp_path: Path
) -> None:
    shelf = empty_shelf(tmp_path)
    first = shelf.add(packages[0])
    shutil.copytree(packages[1].folder, tmp_path / "other")
    other = resealed(tmp_path / "other", classes=("whole", "torn"), permits=permits(("onnxruntime", "fp32")))
    second = shelf.add(other)
    shelf.point("production", first)
    serving = Serving(shelf, runtime="auto", precision="auto")
    fast = Serving(shelf, runtime="openvino", precision="fp32")
    fast.look()
    assert fast.served.predictor.runtime == "openvino"
    fast.follower = Follower(serving.source, serving.last_good, fast.live, serving.metrics, serving.settings)
    shelf.point("production", second)
    assert fast.look() == ("swapped", second.number)
    assert fast.served.predictor.runtime == "onnxruntime"
    assert fast.served.predictor.package.card.classes == ("whole", "torn")


def test_a_model_of_the_same_kind_is_loaded_as_the_one_before_without_measuring(two: Promoted) -> None:
    shelf, (_, second) = two
    serving = Serving(shelf, runtime="openvino")
    serving.look()
    serving.follower = Follower(
        serving.source,
        serving.last_good,
        serving.live,
        serving.metrics,
        replace(serving.settings, runtime="auto", precision="auto"),
    )
    shelf.point("production", second)
    assert serving.look() == ("swapped", second.number)
    assert serving.served.predictor.runtime == "openvino"
    assert not (serving.settings.cache / "runtimes").exists()


@pytest.mark.slow
def test_a_full_disk_keeps_no_model_from_going_live(
    two: Promoted, small_disk: Path, logged: Records, packages: tuple[Package, Package]
) -> None:
    shelf, (first, second) = two
    (small_disk / "filling").write_bytes(b"0" * 1_000_000)
    serving = Serving(shelf, runtime="auto", cache=small_disk)
    serving.last_good.folder = small_disk
    for version in (first, second):
        shelf.point("production", version)
        assert serving.look() == ("swapped", version.number)
        assert serving.look() == ("unchanged", version.number)
    unkept = [record for record in logged if record.getMessage() == "last_good_not_kept"]
    (line,) = unkept  # said once, while the reason is the same
    assert line.__dict__["fields"] == {"version": first.number, "reason": "No space left on device"}


@pytest.mark.slow
def test_a_package_that_finds_no_room_in_the_cache_is_told_and_what_answers_goes_on(
    packages: tuple[Package, Package], tmp_path: Path, small_disk: Path
) -> None:
    shelf = empty_shelf(tmp_path)
    near, far = shelf.add(packages[0]), shelf.add(packages[1], is_remote=True)
    shelf.point("production", near)
    serving = Serving(shelf, cache=small_disk)
    serving.look()
    shelf.point("production", far)
    assert serving.look() == ("fetch_failed", near.number)
    assert "paths.cache: no space left" in serving.live.state().reasons[0]
    assert [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_an_alias_that_moves_while_a_version_is_got_ready_ends_at_the_last(two: Promoted) -> None:
    shelf, (first, second) = two
    serving = Serving(shelf)
    fetch, is_first = serving.source.fetch, [True]

    def move(choice: Choice) -> Package:
        if is_first:
            is_first.clear()
            shelf.point("production", second)
            shelf.point("production", first)
            shelf.point("production", second)
        return fetch(choice)

    serving.source.fetch = move  # type: ignore[method-assign]
    serving.follower.start()  # the next look is an hour away
    wait_until(lambda: serving.version == second.number, WAIT_S, "the last version")
    serving.follower.stop(STOP_S)


def test_looks_that_are_asked_for_at_once_are_one_look_of_the_thread(two: Promoted) -> None:
    shelf, (first, _) = two
    serving = Serving(shelf)
    asked = [serving.follower.ask() for _ in range(8)]
    serving.follower.start()
    assert {(outcome.word, outcome.version) for outcome in (each.result(WAIT_S) for each in asked)} == {
        ("unchanged", first.number)
    }
    assert (serving.count("swapped"), serving.count("unchanged")) == (1, 1)
    serving.follower.stop(STOP_S)


def test_stopping_while_a_model_is_got_ready_swaps_nothing(two: Promoted) -> None:
    shelf, _ = two
    serving = Serving(shelf, batch_size=100_000)  # to warm up for these takes days
    serving.follower.start()
    wait_until(serving.follower._computing.locked, WAIT_S, "a model got ready")
    start = time.monotonic()
    serving.follower.stop(STOP_S)
    assert time.monotonic() - start < 5
    assert not serving.follower.is_alive
    assert serving.version is None
    assert serving.look() == ("unchanged", None)


def test_stopping_does_not_wait_for_a_registry_that_hangs(two: Promoted) -> None:
    shelf, _ = two
    serving = Serving(shelf)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        hanging.settimeout(WAIT_S)
        serving.source.uri = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        serving.follower.start()
        connection, _ = hanging.accept()
        with connection:
            connection.settimeout(WAIT_S)
            assert connection.recv(1)  # it has asked, and gets no answer
            asked = serving.follower.ask()
            start = time.monotonic()
            serving.follower.stop(STOP_S)
            assert time.monotonic() - start < 5
            assert serving.follower.is_alive and not asked.done()


def test_stopping_waits_no_longer_than_was_said_for_what_is_being_computed(two: Promoted) -> None:
    serving = Serving(two[0])
    with serving.follower._computing:  # as while a model is loaded
        serving.follower.start()
        start = time.monotonic()
        serving.follower.stop(0.1)
        assert time.monotonic() - start < 5
    assert serving.version is None


def test_a_server_that_started_from_the_last_good_model_makes_up_for_an_empty_alias_as_at_any_start(
    two: Promoted,
) -> None:
    shelf, (first, second) = two
    Serving(shelf).look()
    hidden = database(shelf).rename(shelf.folder / "hidden")
    again = Serving(shelf)
    assert again.look() == ("registry_unreachable", first.number)
    hidden.rename(database(shelf))
    shelf.clear("production")
    shelf.point("staging", second)
    assert again.look() == ("swapped", second.number)
    assert again.served.found_by == "staging"


@pytest.mark.slow
def test_servers_that_share_a_cache_and_a_last_good_folder_do_not_disturb_each_other(
    packages: tuple[Package, Package], tmp_path: Path
) -> None:
    shelf = empty_shelf(tmp_path)
    versions = [shelf.add(package, is_remote=True) for package in packages]
    shelf.point("production", versions[0])
    servers = [Serving(shelf, poll_s=0.01) for _ in range(3)]
    for serving in servers:
        serving.follower.start()
    for version in (versions[0], versions[1], versions[0], versions[1]):
        shelf.point("production", version)
        for serving in servers:
            wait_until(lambda serving=serving, n=version.number: serving.version == n, WAIT_S, "the version")
    wait_until(
        lambda: all(serving.last_good.facts().version == versions[1].number for serving in servers), WAIT_S, "it"
    )
    for serving in servers:
        serving.follower.stop(STOP_S)
        assert serving.count("swapped") == 4
    kept = servers[0].last_good.open()
    assert kept and kept[1].version == versions[1].number
