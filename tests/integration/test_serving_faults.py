"""What the server does when something around it fails, while clients keep predicting: it answers, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flatfix.inference.package import MODEL, Package
from flatfix.registry.versions import Version
from tests.helpers.callers import Callers, Said, offline, some_pictures
from tests.helpers.flatfix_server import FlatfixServer
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.s3_server import S3Server
from tests.helpers.server import Server, wait_until
from tests.helpers.serving import Shelf, two_packages, wrong
from tests.helpers.small_disk import mounted

pytestmark = pytest.mark.service

OPTIONS = ("runtime=onnxruntime", "precision=fp32", "batch.size=4")
MLFLOW_TIMEOUT_S = 3  # 30 unless the environment says otherwise: what hangs should be known sooner here
CALM_S = 0.02  # between two requests of a client: the servers need the cores, too
WAIT_S = 60.0

DOWN: dict[str, tuple[Callable[[Server], None], Callable[[Server], None]]] = {
    "killed": (Server.kill, Server.start),
    "hung": (Server.pause, Server.resume),
}


@dataclass
class Company:
    """MLflow over an object store, with a registered model of four versions: two that answer, two that must not."""

    mlflow: MlflowServer
    objects: S3Server
    shelf: Shelf
    packages: tuple[Package, Package]
    first: Version
    second: Version
    damaged: Version
    wrong: Version
    pictures: list[bytes]
    said: dict[str, list[Said]]

    def of(self, *versions: Version) -> dict[str, list[Said]]:
        """Return what versions say offline, by their number."""
        return {str(version.number): self.said[str(version.number)] for version in versions}

    def serve(self, folder: Path, *options: str) -> FlatfixServer:
        return FlatfixServer(folder, self.mlflow.uri, *OPTIONS, *options)

    def callers(self, server: FlatfixServer) -> Callers:
        return Callers(server.url, self.pictures, pause_s=CALM_S)


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory, one_s3_server: S3Server) -> Iterator[Company]:
    folder = tmp_path_factory.mktemp("company")
    with pytest.MonkeyPatch.context() as environment, ExitStack() as stack:
        if not one_s3_server.is_running:
            one_s3_server.start()
        one_s3_server.become("owner", environment)
        environment.setenv("AWS_MAX_ATTEMPTS", "1")
        environment.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(MLFLOW_TIMEOUT_S))
        mlflow = stack.enter_context(
            MlflowServer(folder / "mlflow", artifacts=f"s3://{one_s3_server.bucket}/{folder.name}")
        )
        shelf = Shelf(folder, mlflow.uri)
        packages = two_packages(folder / "packages")
        first, second, damaged = (shelf.add(package) for package in (*packages, packages[1]))
        flip_a_byte(one_s3_server, damaged)
        pictures = some_pictures()
        said = {
            str(version.number): offline(package, "onnxruntime", pictures)
            for version, package in zip((first, second), packages, strict=True)
        }
        bad = shelf.add(wrong(packages[1], folder / "wrong"))
        yield Company(mlflow, one_s3_server, shelf, packages, first, second, damaged, bad, pictures, said)


@pytest.fixture(scope="module")
def one_server(company: Company, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlatfixServer]:
    """A server for all tests that do not stop it."""
    company.shelf.point("production", company.first)
    with company.serve(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(company: Company, one_server: FlatfixServer) -> FlatfixServer:
    """The server, well and with the first version."""
    company.shelf.point("production", company.first)
    wait_for(one_server, status="ok", model_version=str(company.first.number), found_by="production")
    return one_server


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", megabytes=32) as disk:
        yield disk


def flip_a_byte(objects: S3Server, version: Version) -> None:
    """Damage the model of a version where the object store keeps it, as a disk does that goes bad."""
    listing = objects.client.list_objects_v2(Bucket=objects.bucket)["Contents"]
    (key,) = (each["Key"] for each in listing if f"{version.run_id}/" in each["Key"] and each["Key"].endswith(MODEL))
    content = bytearray(objects.client.get_object(Bucket=objects.bucket, Key=key)["Body"].read())
    content[len(content) // 2] ^= 1
    objects.put(key, bytes(content))


def wait_for(server: FlatfixServer, **state: Any) -> None:
    """Return when `/health` says so."""
    wait_until(lambda: state.items() <= server.health().items(), WAIT_S, str(state))


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no room on a disk."""
    file = disk / "filling"
    with pytest.raises(OSError, match="No space left"), file.open("wb", buffering=0) as filling:
        while True:
            filling.write(bytes(2**12))
    yield
    file.unlink()


class Watch:
    """Tells what a server has counted and logged of reloads since the watch began."""

    def __init__(self, server: FlatfixServer) -> None:
        self._server = server
        self._num_lines = len(server.log.splitlines())
        self._before = self._counts()

    def count(self, outcome: str) -> float:
        return self._counts().get(outcome, 0) - self._before.get(outcome, 0)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of the log about an event."""
        lines = self._server.log.splitlines()[self._num_lines :]
        return [json.loads(line) for line in lines if f'"event": "{event}"' in line]

    def told(self) -> list[tuple[str, int | None]]:
        """Return outcome and version of what the log tells of looks; each reason comes once, however many looks."""
        lines = [(line["outcome"], line.get("version"), line["reason"]) for line in self.lines("reload")]
        assert len(set(lines)) == len(lines), lines
        return list(dict.fromkeys((outcome, version) for outcome, version, _ in lines))

    def _counts(self) -> dict[str, float]:
        lines = self._server.get("/metrics")[1].decode().splitlines()
        series = (line.rpartition(" ") for line in lines if line.startswith("model_reloads_total{"))
        return {name.split('"')[1]: float(value) for name, _, value in series}


def test_a_promotion_and_a_rollback_reach_the_server_in_the_same_way(company: Company, server: FlatfixServer) -> None:
    watch = Watch(server)
    with company.callers(server) as callers:
        for version in (company.second, company.first):
            callers.wait_for_more()
            company.shelf.point("production", version)
            wait_for(server, status="ok", model_version=str(version.number))
        callers.wait_for_more()
    callers.check(company.of(company.first, company.second))
    assert callers.versions == ["1", "2", "1"]
    assert watch.count("swapped") == 2
    assert [line["version"] for line in watch.lines("model_live")] == [2, 1]
    assert watch.told() == []


@pytest.mark.parametrize("how", DOWN)
def test_a_registry_that_goes_down_leaves_the_model_and_is_followed_when_it_is_back(
    company: Company, server: FlatfixServer, how: str
) -> None:
    break_down, come_back = DOWN[how]
    watch = Watch(server)
    with company.callers(server) as callers:
        callers.wait_for_more()
        break_down(company.mlflow)
        try:
            wait_for(server, status="degraded", model_version="1")
            assert server.get("/metrics")[1].decode().count("\nmodel_degraded 1.0\n") == 1
            wait_until(lambda: watch.count("registry_unreachable") >= 2, WAIT_S, "a second look")
            callers.wait_for_more()
        finally:
            come_back(company.mlflow)
        wait_for(server, status="ok", model_version="1")
        company.shelf.point("production", company.second)
        wait_for(server, status="ok", model_version="2")
        callers.wait_for_more()
    callers.check(company.of(company.first, company.second))
    assert callers.versions == ["1", "2"]
    assert watch.told() == [("registry_unreachable", None)]
    assert [line["outcome"] for line in watch.lines("reload_recovered")] == ["unchanged"]


def test_a_server_that_starts_while_the_registry_is_down_takes_the_last_good_model_until_it_is_back(
    company: Company, server: FlatfixServer, tmp_path: Path
) -> None:
    kept = server.folder / "cache"  # of a server before, on the same machine
    company.mlflow.kill()
    try:
        late = company.serve(tmp_path / "late", f"paths.cache={kept}")
        with late, company.callers(late) as callers:
            watch = Watch(late)
            wait_for(late, status="degraded", model_version="1", found_by="last good")
            assert "MLflow cannot be used there" in late.health()["reasons"][0]
            callers.wait_for_more()
            company.mlflow.start()
            wait_for(late, status="ok", model_version="1", found_by="production")
            company.shelf.point("production", company.second)
            wait_for(late, status="ok", model_version="2")
            callers.wait_for_more()
            assert watch.count("swapped") == 1
    finally:
        if not company.mlflow.is_running:
            company.mlflow.start()
    callers.check(company.of(company.first, company.second))
    assert len(watch.lines("reload_recovered")) == 1


@pytest.mark.parametrize("how", DOWN)
def test_a_version_whose_package_cannot_be_fetched_goes_live_when_the_object_store_is_back(
    company: Company, server: FlatfixServer, tmp_path: Path, how: str
) -> None:
    break_down, come_back = DOWN[how]
    fresh = company.shelf.add(company.packages[1])  # in nobody's cache
    watch = Watch(server)
    with company.callers(server) as callers:
        callers.wait_for_more()
        break_down(company.objects)
        try:
            company.shelf.point("production", fresh)
            wait_for(server, status="degraded", model_version="1")
            wait_until(lambda: watch.count("fetch_failed") >= 2, WAIT_S, "a second look")
            callers.wait_for_more()
        finally:
            come_back(company.objects)
        wait_for(server, status="ok", model_version=str(fresh.number))
        callers.wait_for_more()
    said = {"1": company.said["1"], str(fresh.number): company.said["2"]}
    callers.check(said)
    assert callers.versions == list(said)
    assert watch.told() == [("fetch_failed", fresh.number)]


@pytest.mark.parametrize("outcome", ["damaged", "wrong_answers"])
def test_a_version_that_is_not_what_it_was_never_answers(company: Company, server: FlatfixServer, outcome: str) -> None:
    bad = company.damaged if outcome == "damaged" else company.wrong
    watch = Watch(server)
    with company.callers(server) as callers:
        company.shelf.point("production", bad)
        wait_for(server, status="degraded", model_version="1")
        wait_until(lambda: watch.count(outcome) >= 3, WAIT_S, "a third look")
        callers.wait_for_more()
        company.shelf.point("production", company.first)
        wait_for(server, status="ok", model_version="1", reasons=[])
    callers.check(company.of(company.first))
    assert watch.told() == [(outcome, bad.number)]
    assert watch.count("swapped") == 0


def test_a_full_disk_stops_neither_answers_nor_a_rollback_and_is_made_up_for_when_there_is_room(
    company: Company, tmp_path: Path, disk: Path
) -> None:
    company.shelf.point("production", company.first)
    with company.serve(tmp_path / "server", f"paths.cache={disk}") as server, company.callers(server) as callers:
        wait_until(lambda: kept_on(disk) == 1, WAIT_S, "the first version kept")
        watch = Watch(server)
        with filled(disk):
            company.shelf.point("production", company.second)
            wait_for(server, status="degraded", model_version="1")
            callers.wait_for_more()
            assert watch.told() == [("fetch_failed", 2)]
            assert "paths.cache: no space left" in server.health()["reasons"][0]
            assert kept_on(disk) == 1
        wait_for(server, status="ok", model_version="2")
        wait_until(lambda: kept_on(disk) == 2, WAIT_S, "the second version kept")
        with filled(disk):
            company.shelf.point("production", company.first)  # whose package was fetched already
            wait_for(server, status="ok", model_version="1")
            wait_until(lambda: watch.lines("last_good_not_kept"), WAIT_S, "a line about what is not kept")
            callers.wait_for_more()
            assert kept_on(disk) == 2
        wait_until(lambda: kept_on(disk) == 1, WAIT_S, "the first version kept again")
    callers.check(company.of(company.first, company.second))
    assert callers.versions == ["1", "2", "1"]
    (line,) = watch.lines("last_good_not_kept")
    assert (line["version"], line["reason"]) == (1, "No space left on device")


def kept_on(disk: Path) -> int | None:
    """Return the version that was kept last."""
    files = list(disk.glob("serving/*/last_good.json"))
    return json.loads(files[0].read_text())["version"] if files else None


def test_an_empty_alias_is_made_up_for_at_the_start_by_staging_and_then_by_the_newest_version(
    company: Company, tmp_path: Path
) -> None:
    shelf = company.shelf
    shelf.clear("production")
    newest = shelf.add(company.packages[1])
    shelf.point("staging", company.first)
    with company.serve(tmp_path / "staging", "poll_s=60") as server:  # a second look would tell what goes on
        wait_for(server, status="ok", model_version="1", found_by="staging")
        assert server.health()["reasons"] == ["alias=production: it points at no version; staging is served"]
    shelf.clear("staging")
    with company.serve(tmp_path / "newest") as server, company.callers(server) as callers:
        wait_for(server, status="ok", model_version=str(newest.number), found_by="newest")
        callers.wait_for_more()
        shelf.point("production", company.first)
        wait_for(server, status="ok", model_version="1", found_by="production", reasons=[])
        watch = Watch(server)
        shelf.clear("production")
        reason = "alias=production: it points at no version; version 1 goes on"
        wait_for(server, status="ok", model_version="1", reasons=[reason])
        wait_until(lambda: watch.count("not_found") >= 2, WAIT_S, "a second look")
        callers.wait_for_more()
    callers.check({str(newest.number): company.said["2"], "1": company.said["1"]})
    assert callers.versions == [str(newest.number), "1"]
    assert watch.told() == [("not_found", 1)]
