from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flatfix.data.blobs import file_sha256
from flatfix.data.publish import publish, resolve
from flatfix.data.s3_store import S3Store
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import Store, StoreConflictError, open_store
from flatfix.data.version import DamagedVersionError, list_versions, open_version
from flatfix.errors import UserError
from flatfix.training.run import train
from tests.helpers.compose import ROOT, compose_train
from tests.helpers.images import class_folders
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.s3_server import S3Server, use_aws

pytestmark = pytest.mark.service
SHARD = "datasets/pets/v1/shard-00000.tar"


@pytest.fixture
def server(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    monkeypatch.delenv("AWS_ENDPOINT_URL")  # the option names the server
    return s3_server


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"s3://pictures/{tmp_path.name}"


def open_s3(server: S3Server, uri: str, cache: Path, is_offline: bool = False) -> Store:
    return open_store({"uri": uri, "endpoint_url": server.endpoint, "region": None}, cache, is_offline=is_offline)


def publish_pets(store: Store, folder: Path, num_pictures: int = 20) -> None:
    source = FolderSource(class_folders(folder / f"{num_pictures} pets", num_pictures=num_pictures))
    publish(source, store, name="pets", version="v1", rule=SplitRule())


def ignore(num_bytes: int) -> None:
    """Need no progress."""


def flip(server: S3Server, uri: str, key: str, position: int) -> None:
    """Change one bit of an object; the server, asked again, gives other bytes than before."""
    name = f"{uri.removeprefix('s3://pictures/')}/{key}"
    before = server.client.get_object(Bucket="pictures", Key=name)["Body"].read()
    data = bytearray(before)
    data[position] ^= 1
    server.put(name, bytes(data))
    assert server.client.get_object(Bucket="pictures", Key=name)["Body"].read() != before


def test_a_run_trains_from_s3_with_an_empty_cache_and_again_without_the_server(
    server: S3Server, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_s3(server, uri, tmp_path / "of the publisher")
    publish_pets(store, tmp_path)
    (manifest,) = list_versions(store)
    output = tmp_path / "output"
    fresh_database(output)
    words = ["store=s3", f"store.uri={uri}", f"store.endpoint_url={server.endpoint}", "report=false", "model=cnn"]
    words += ["dataset=published", "dataset.name=pets", "dataset.positive_class=cat"]
    words += ["dataset.image_size=32", "dataset.batch_size=8"]
    words += ["trainer.max_epochs=1", "trainer.precision=32", "tracking.system_metrics=false"]

    result = train(compose_train(output, *words))

    run = MlflowClient(f"sqlite:///{output / 'mlflow.db'}").get_run(result.run_id)
    assert run.data.params["dataset_digest"] == manifest.digest
    assert run.data.params["store.uri"] == uri
    assert f"fetching {uri}/{SHARD}" in capsys.readouterr().out
    for path in (path for path in tmp_path.rglob("*") if path.is_file() and path.name != "uncommitted.diff"):
        assert b"secret of owner" not in path.read_bytes(), path  # but in the developer's own change of the tests
    held = {path.name for path in (output / "cache/blobs").glob("[!.]*")}
    assert held == {manifest.index_sha256, manifest.shards[0].sha256}

    server.kill()
    for pixels in (output / "cache").glob("*.npy"):  # to be decoded anew
        pixels.unlink()
    again = train(compose_train(output, *words, "dataset.offline=true", f"paths.run={tmp_path / 'second'}"))
    assert again.status == "FINISHED"
    assert "fetching" not in capsys.readouterr().out


def test_the_commands_publish_verify_and_find_damage(server: S3Server, uri: str, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "publish.py"), "dataset.name=pets", "store=s3", f"store.uri={uri}"]
        command += [f"store.endpoint_url={server.endpoint}", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    done = run("dataset=folder", f"dataset.source.root={root}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pets/v1" in run("dataset=published", "action=list").stdout
    verify = ["dataset=published", "action=verify"]
    assert run(*verify).returncode == 0
    flip(server, uri, SHARD, position=700)
    damaged = run(*verify)
    assert damaged.returncode == 1
    assert f"{SHARD} in {uri} is not what was published" in damaged.stderr
    assert run(*verify, "store.endpoint_url=null").returncode == 2
    assert b"secret of owner" not in b"".join(p.read_bytes() for p in (tmp_path / "outputs").rglob("*") if p.is_file())


def test_offline_says_what_the_cache_lacks_and_publishes_nothing(
    server: S3Server, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    store = open_s3(server, uri, cache)
    publish_pets(store, tmp_path)
    offline = open_s3(server, uri, cache, is_offline=True)

    with pytest.raises(UserError, match=rf"not in the store {uri} \(dataset\.offline=true: .*holds no version yet"):
        open_version(offline, "pets", "v1")
    open_version(store, "pets", "v1").index()
    open_version(offline, "pets", "v1").index()
    with pytest.raises(UserError, match=rf"dataset\.offline=true: {SHARD} of {uri} is not in .*Run once without"):
        open_version(offline, "pets", "v1").shard("shard-00000.tar")
    capsys.readouterr()
    with pytest.raises(UserError, match=r"dataset\.offline=true: nothing can be published"):
        publish_pets(open_s3(server, uri, tmp_path / "empty", is_offline=True), tmp_path)
    assert capsys.readouterr().out == ""  # nothing was staged


def test_s3_is_published_to_only_when_asked(server: S3Server, uri: str, tmp_path: Path) -> None:
    store = open_s3(server, uri, tmp_path / "cache")
    source = FolderSource(class_folders(tmp_path / "pictures"))
    what = {"name": "pets", "version": "v1", "source": source, "rule": SplitRule(), "on_bad_image": "error"}

    with pytest.raises(UserError, match=r"Set dataset\.publish=true"):
        resolve(store, publish=None, **what)  # type: ignore[arg-type]
    assert store.list("") == []
    assert resolve(store, publish=True, **what).manifest.num("train")  # type: ignore[arg-type]
    assert store.list("datasets/pets/v1/") == [
        f"datasets/pets/v1/{name}" for name in ("index.parquet", "manifest.json", "shard-00000.tar")
    ]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("shard-00000.tar", r"shard-00000\.tar in s3://.* is not what was published"),
        ("index.parquet", r"index\.parquet in s3://.* is not what was published"),
        ("manifest.json", r"manifest\.json in s3://.*: not a manifest"),
    ],
)
def test_a_flipped_bit_in_the_store_is_found_and_not_kept(
    server: S3Server, uri: str, tmp_path: Path, file: str, says: str
) -> None:
    store = open_s3(server, uri, tmp_path / "cache")
    publish_pets(store, tmp_path)
    flip(server, uri, f"datasets/pets/v1/{file}", position=700)

    with pytest.raises(UserError, match=says) as error:
        version = open_version(store, "pets", "v1")
        version.index()
        version.shard("shard-00000.tar")
    assert isinstance(error.value, DamagedVersionError) == (file != "manifest.json")
    for path in (tmp_path / "cache/blobs").glob("[!.]*"):
        assert file_sha256(path) == path.name


def test_a_wrong_bucket_a_wrong_key_and_no_permission_are_told_apart(
    server: S3Server, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_s3(server, uri, tmp_path / "cache")
    publish_pets(store, tmp_path)
    version = open_version(store, "pets", "v1")
    elsewhere = open_s3(server, "s3://gone/vision", tmp_path / "cache")

    with pytest.raises(
        UserError, match=rf"store\.uri=s3://gone/vision store\.endpoint_url={server.endpoint}: .*: no such bucket at"
    ):
        open_version(elsewhere, "pets", "v1")
    with pytest.raises(UserError, match=rf"dataset\.version=v2: not in the store {uri}, which holds pets/v1\."):
        open_version(store, "pets", "v2")
    server.become("lister", monkeypatch)
    with pytest.raises(UserError, match=rf"store\.uri={uri}: no permission to read {uri}/{SHARD}: .*AWS_PROFILE"):
        version.shard("shard-00000.tar")
    with pytest.raises(UserError, match=rf"store\.uri={uri}: no permission to read {uri}/datasets/pets/v2/shard-0"):
        store.put_file("datasets/pets/v2/shard-00000.tar", next(tmp_path.rglob("*.png")), "", ignore)
    with pytest.raises(UserError, match=rf"store\.uri={uri} .*AccessDenied: "):
        store.put_bytes("datasets/pets/v2/manifest.json", b"")
    server.become("owner", monkeypatch)
    server.client.delete_object(Bucket="pictures", Key=f"{uri.removeprefix('s3://pictures/')}/{SHARD}")
    with pytest.raises(DamagedVersionError, match=rf"{SHARD} in {uri} is missing"):
        version.shard("shard-00000.tar")


def test_a_file_of_several_parts_comes_back_as_it_was(server: S3Server, uri: str, tmp_path: Path) -> None:
    store = open_s3(server, uri, tmp_path / "cache")
    content = os.urandom((20 << 20) + 1)
    (tmp_path / "big").write_bytes(content)

    sha256 = hashlib.sha256(content).hexdigest()
    num_bytes: list[int] = []

    store.put_file("a b/ü+%20?#", tmp_path / "big", sha256, num_bytes.append)

    assert sum(num_bytes) == len(content) and len(num_bytes) == 1 + 3  # it begins with 0
    assert store.fetch("a b/ü+%20?#", sha256).read_bytes() == content
    assert store.holds("a b/ü+%20?#", sha256)
    assert not store.holds("a b/ü+%20?#", "another") and not store.holds("a b", sha256)
    assert store.list("a b") == ["a b/ü+%20?#"]
    assert store.exists("a b/ü+%20?#") and not store.exists("a b")


def test_of_many_exclusive_writers_one_wins(server: S3Server, uri: str, tmp_path: Path) -> None:
    store = open_s3(server, uri, tmp_path / "cache")
    begin = threading.Barrier(8)

    def write(number: int) -> bool:
        begin.wait()
        try:
            store.put_bytes("key", str(number).encode(), exclusive=True)
        except StoreConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        has_won = list(pool.map(write, range(8)))
    assert sum(has_won) == 1
    assert store.read("key") == str(has_won.index(True)).encode()


def test_of_two_publishers_of_other_content_the_second_changes_nothing(
    server: S3Server, uri: str, tmp_path: Path
) -> None:
    store = open_s3(server, uri, tmp_path / "cache")
    publish_pets(store, tmp_path)
    before = {key: store.read(key) for key in store.list("")}

    publish_pets(store, tmp_path)  # the same again is no error
    with pytest.raises(UserError, match=r"holds pets/v1 with other content .*a version never changes"):
        publish_pets(store, tmp_path, num_pictures=12)

    assert {key: store.read(key) for key in store.list("")} == before


def test_only_addresses_of_s3_are_taken(tmp_path: Path) -> None:
    options = {"endpoint_url": None, "region": None}
    with pytest.raises(UserError, match=r"store\.uri=/data: expected s3://bucket/prefix\. A folder is store=local"):
        open_store({"uri": "/data", **options}, tmp_path)
    with pytest.raises(UserError, match=r"s3:///x: names no bucket"):
        open_store({"uri": "s3:///x", **options}, tmp_path)
    assert isinstance(open_store({"uri": "s3://pictures/", **options}, tmp_path), S3Store)


def test_a_web_server_is_not_taken_for_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_aws(monkeypatch, AWS_ACCESS_KEY_ID="owner", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1")
    monkeypatch.chdir(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever).start()
        endpoint = f"http://127.0.0.1:{web.server_port}"
        store = open_store({"uri": "s3://lake", "endpoint_url": endpoint, "region": None}, tmp_path)

        with pytest.raises(UserError, match=rf"store\.endpoint_url={endpoint}: .* is no S3 server"):
            open_version(store, "pets", "v1")
        web.shutdown()
