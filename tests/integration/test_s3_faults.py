from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flatfix.data import lease, s3
from flatfix.data.commit import commit
from flatfix.data.store import Store, open_store
from flatfix.data.version import DamagedVersionError, is_held, open_version
from flatfix.errors import UserError
from tests.helpers.compose import ROOT, TINY
from tests.helpers.fault_proxy import Cut, CutRequest, FaultProxy, Hold, HoldAnswer, Refuse
from tests.helpers.images import class_folders, encode
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.s3_server import S3Server
from tests.helpers.server import wait_until
from tests.helpers.versions import stage_noise

pytestmark = pytest.mark.service

MB = 1 << 20
CONTENT = os.urandom(20 * MB + 1)  # three parts
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MANIFEST = "datasets/noise/v1/manifest.json"


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def uri(s3_server: S3Server, tmp_path: Path) -> str:
    return f"s3://{s3_server.bucket}/{tmp_path.name}"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(proxy: FaultProxy, uri: str, cache: Path) -> Store:
    """The store as it is seen through the proxy."""
    return open_store({"uri": uri, "endpoint_url": proxy.endpoint, "region": None}, cache)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(CONTENT)
    return path


def put_big(store: Store, big: Path) -> None:
    store.put_file("big", big, SHA256, lambda num_bytes: None)


def kept(cache: Path) -> list[str]:
    return [path.name for path in (cache / "blobs").glob("*") if path.suffix != ".lock"]


def commit_noise(store: Store, folder: Path, num_shards: int = 4, seed: int = 0) -> None:
    commit(store, stage_noise(folder, [9 * MB] * num_shards, seed), folder)


def is_whole(store: Store) -> bool:
    version = open_version(store, "noise", "v1")
    return all(version.shard(shard.name).stat().st_size == shard.bytes for shard in version.manifest.shards)


def test_a_server_that_is_busy_for_a_while_is_asked_again(proxy: FaultProxy, store: Store, big: Path) -> None:
    proxy.on("^PUT .*partNumber=2", Refuse(503), times=3)
    put_big(store, big)
    assert len(proxy.faults) == 3
    assert proxy.count("^PUT .*partNumber=2") == 4

    proxy.on("^GET .*big", Refuse(500, "InternalError"), times=2)
    proxy.on("^HEAD .*big", Refuse(503), times=2)
    assert store.fetch("big", SHA256).read_bytes() == CONTENT
    assert len(proxy.faults) == 7
    assert proxy.count("^GET ") == 3 + 2


def test_a_server_that_stays_busy_is_given_up_with_one_message(
    proxy: FaultProxy, store: Store, big: Path, cache: Path
) -> None:
    proxy.on("^PUT .*partNumber=3", Refuse(503))
    with pytest.raises(UserError) as error:
        put_big(store, big)
    assert str(error.value).startswith(f"store.uri={store.uri} store.endpoint_url={proxy.endpoint}: {store.uri}/big: ")
    assert "SlowDown: by the proxy" in str(error.value)
    assert proxy.count("^PUT .*partNumber=3") == len(proxy.faults) == s3.ATTEMPTS
    assert proxy.count("^DELETE .*uploadId=") == 1
    assert not store.exists("big")

    proxy.on("^HEAD ", Refuse(503))
    with pytest.raises(UserError, match=rf"^store\.uri={store.uri} store\.endpoint_url={proxy.endpoint}: "):
        store.fetch("big", SHA256)
    assert len(proxy.faults) == 2 * s3.ATTEMPTS
    assert kept(cache) == []


def test_a_request_that_stays_without_an_answer_is_made_no_more_often_than_the_client_makes_it(
    s3_server: S3Server, proxy: FaultProxy, store: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 0.2)
    s3_server.put(f"{uri.removeprefix('s3://pictures/')}/key", b"content")
    proxy.on("^GET ", Hold())
    with pytest.raises(UserError, match="Read timeout on endpoint URL"):
        store.read("key")
    assert proxy.count("^GET ") == s3.ATTEMPTS


def test_an_answer_that_does_not_come_is_asked_for_again(
    proxy: FaultProxy, store: Store, big: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 0.7)
    put_big(store, big)

    proxy.on("^GET ", Hold(), times=2)
    assert store.fetch("big", SHA256).read_bytes() == CONTENT
    assert len(proxy.faults) == 2

    proxy.on("^HEAD ", Hold())
    (cache / "blobs" / SHA256).unlink()
    with pytest.raises(UserError, match=r"store\.endpoint_url=http.* Read timeout on endpoint URL"):
        store.fetch("big", SHA256)
    assert len(proxy.faults) == 2 + s3.ATTEMPTS
    assert kept(cache) == []


def test_a_body_that_breaks_off_is_fetched_again_and_a_part_of_an_upload_sent_again(
    proxy: FaultProxy, store: Store, big: Path, cache: Path
) -> None:
    proxy.on("^PUT .*partNumber=1", CutRequest(MB), times=2)
    put_big(store, big)
    proxy.wait_for_faults(2)
    assert len(proxy.faults) == 2

    proxy.on("^GET ", Cut(3 * MB), times=2)
    assert store.fetch("big", SHA256).read_bytes() == CONTENT
    assert len(proxy.faults) == 4

    (cache / "blobs" / SHA256).unlink()
    proxy.on("^GET (?s:.*)bytes=16777216-", Cut(MB))
    with pytest.raises(UserError, match=rf"^store\.uri={store.uri} store\.endpoint_url={proxy.endpoint}: "):
        store.fetch("big", SHA256)
    assert len(proxy.faults) == 4 + s3.ATTEMPTS
    assert kept(cache) == []


def test_a_server_killed_in_the_middle_of_a_download_leaves_nothing_half_written(
    s3_server: S3Server, proxy: FaultProxy, store: Store, big: Path, cache: Path
) -> None:
    put_big(store, big)
    proxy.on("^GET (?s:.*)bytes=8388608-", Cut(3 * MB), times=1, then=s3_server.kill)

    with pytest.raises(UserError, match=rf"^store\.uri={store.uri} store\.endpoint_url={proxy.endpoint}: "):
        store.fetch("big", SHA256)
    assert len(proxy.faults) == 1
    assert not s3_server.is_running
    assert kept(cache) == []

    s3_server.start()
    assert store.fetch("big", SHA256).read_bytes() == CONTENT


def test_a_server_killed_in_the_middle_of_a_publish_gets_only_the_rest_when_it_is_back(
    s3_server: S3Server, proxy: FaultProxy, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 2)  # that of the publish that broke off must end

    proxy.on("^PUT .*shard-00005.*partNumber=2", CutRequest(MB // 2), times=1, then=s3_server.kill)
    with pytest.raises(UserError, match=rf"^store\.uri={store.uri} store\.endpoint_url={proxy.endpoint}: "):
        commit_noise(store, tmp_path / "staged", num_shards=8)
    assert len(proxy.faults) == 1
    s3_server.start()
    held = store.list("datasets/noise/v1/shard")
    assert held
    assert not any(key.endswith("shard-00005.tar") for key in held)
    assert not is_held(store, "noise", "v1")
    proxy.forget()

    commit_noise(store, tmp_path / "staged", num_shards=8)

    begun = {re.search(r"shard-\d+", request)[0] for request in proxy.requests if request.startswith("POST")}  # type: ignore[index]
    assert begun == {f"shard-{number:05d}" for number in range(8)} - {key[-15:-4] for key in held}
    assert is_whole(store)


def test_a_second_publisher_waits_and_its_other_content_changes_nothing(
    s3_server: S3Server,
    proxy: FaultProxy,
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "POLL_S", 0.1)
    proxy.on("^PUT .*shard-00001.*partNumber=1", Hold(), times=1)
    first = threading.Thread(target=commit_noise, args=(store, tmp_path / "first"))
    first.start()
    proxy.wait_for_faults()
    said: list[str] = []

    def is_waiting() -> bool:
        said.append(capsys.readouterr().out)
        return "waiting for " in "".join(said)

    errors: list[UserError] = []

    def publish_other() -> None:
        try:
            commit_noise(store, tmp_path / "second", seed=1)
        except UserError as error:
            errors.append(error)

    second = threading.Thread(target=publish_other)
    second.start()
    wait_until(is_waiting, 20, "the second to wait")
    proxy.release()
    first.join(timeout=60)
    second.join(timeout=60)

    assert "holds noise/v1 with other content" in str(errors[0])
    assert open_version(store, "noise", "v1").manifest == stage_noise(tmp_path / "again", [9 * MB] * 4)
    assert is_whole(store)
    assert proxy.count("^POST .*shard-00001.tar[?]uploads") == 1


@pytest.mark.parametrize("num_bytes", [MB, 9 * MB], ids=["whole", "in parts"])
@pytest.mark.parametrize("is_stale_there", [False, True], ids=["over nothing", "over a stale file"])
def test_a_request_that_arrives_after_the_lease_changes_nothing(
    proxy: FaultProxy, s3_server: S3Server, store: Store, tmp_path: Path, num_bytes: int, is_stale_there: bool
) -> None:
    key = "datasets/noise/v1/shard-00000.tar"
    if is_stale_there:
        store.put_bytes(key, b"of an attempt that broke off")
    late, mine = tmp_path / "late", tmp_path / "mine"
    late.write_bytes(bytes(num_bytes))
    mine.write_bytes(os.urandom(num_bytes))
    sha256 = hashlib.sha256(mine.read_bytes()).hexdigest()
    proxy.on("^PUT .*shard-00000.tar HTTP|^POST .*uploadId=", Hold(), times=1)
    errors: list[UserError] = []

    def put_late() -> None:
        try:
            store.put_file(key, late, hashlib.sha256(late.read_bytes()).hexdigest(), lambda num_bytes: None)
        except UserError as error:
            errors.append(error)

    thread = threading.Thread(target=put_late)
    thread.start()
    proxy.wait_for_faults()
    store.put_file(key, mine, sha256, lambda num_bytes: None)
    proxy.release()
    thread.join(timeout=60)

    assert "somebody else writes this version. Run again." in str(errors[0])
    assert store.read(key) == mine.read_bytes()
    assert store.holds(key, sha256)


@pytest.mark.parametrize("num_bytes", [MB, 9 * MB], ids=["whole", "in parts"])
def test_an_upload_whose_last_answer_was_lost_is_not_taken_for_another_s(
    proxy: FaultProxy, store: Store, tmp_path: Path, num_bytes: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(num_bytes))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    proxy.on("^PUT .*key HTTP|^POST .*uploadId=", HoldAnswer(), times=1, then=proxy.release)
    store.put_file("key", path, sha256, lambda num_bytes: None)
    assert len(proxy.faults) == 1
    assert store.read("key") == path.read_bytes()


def test_a_server_without_conditional_writes_is_written_to_all_the_same(
    proxy: FaultProxy, store: Store, big: Path
) -> None:
    proxy.on("(?i)\r\nif-(none-)?match", Refuse(501, "NotImplemented"))
    for _ in range(2):  # over nothing, over something
        put_big(store, big)
    assert len(proxy.faults) == 2
    assert store.holds("big", SHA256)


def test_what_another_wrote_after_the_last_look_at_the_lock_is_not_written_over(store: Store, big: Path) -> None:
    def advance(num_bytes: int) -> None:
        if num_bytes == 0:
            store.put_bytes("big", b"of another")

    with pytest.raises(UserError, match=r"big: somebody else writes this version\. Run again\."):
        store.put_file("big", big, SHA256, advance)
    assert store.read("big") == b"of another"


def test_a_lock_that_is_lost_in_the_middle_of_a_file_ends_it_with_one_message(
    proxy: FaultProxy, store: Store, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0)  # each look at the lock asks the server
    with store.lock("datasets/noise/v1") as confirm:
        s3.put(f"{store.uri}/datasets/noise/v1/.lock", b"machine 7 (process 12) 0 0")

        def advance(num_bytes: int) -> None:
            if num_bytes > 0:  # a part went up
                confirm()

        with pytest.raises(UserError, match=r"^store\.uri=.*: machine 7 \(process 12\) took over") as error:
            store.put_file("big", big, SHA256, advance)
    assert str(error.value).count("store.uri=") == 1
    assert proxy.count("^DELETE .*uploadId=") == 1
    assert not store.exists("big")


def test_no_space_left_in_the_cache_names_the_options(store: Store, big: Path, cache: Path) -> None:
    put_big(store, big)
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / f".{SHA256}.partial").symlink_to("/dev/full")

    with pytest.raises(UserError, match=r"paths\.cache: no space left for .* dataset\.cache_gigabytes") as error:
        store.fetch("big", SHA256)
    assert isinstance(error.value.__cause__, OSError) and error.value.__cause__.strerror == "No space left on device"
    assert kept(cache) == []
    assert store.fetch("big", SHA256).read_bytes() == CONTENT


def test_a_damaged_copy_and_a_damaged_object_are_fetched_once_and_refused(
    s3_server: S3Server, proxy: FaultProxy, store: Store, tmp_path: Path, cache: Path
) -> None:
    commit_noise(store, tmp_path / "staged", num_shards=1)
    copy = open_version(store, "noise", "v1").shard("shard-00000.tar")
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1])
    proxy.forget()

    assert open_version(store, "noise", "v1").shard("shard-00000.tar").read_bytes() == whole
    assert proxy.count("^GET .*shard-00000.tar") == 2  # its parts

    copy.write_bytes(whole[:-1])
    s3_server.put(f"{store.uri.removeprefix('s3://pictures/')}/datasets/noise/v1/shard-00000.tar", whole[:-1] + b"x")
    proxy.forget()
    with pytest.raises(DamagedVersionError, match=r"shard-00000\.tar in s3://.* is not what was published"):
        open_version(store, "noise", "v1").shard("shard-00000.tar")
    assert proxy.count("^GET .*shard-00000.tar") == 2
    assert kept(cache) == []


@pytest.fixture
def command(uri: str, tmp_path: Path, proxy: FaultProxy) -> Callable[..., list[str]]:
    """The words of a command, and the folder for what it stages."""
    (tmp_path / "tmp").mkdir()

    def words(script: str, *more: str) -> list[str]:
        address = ["store=s3", f"store.uri={uri}", f"store.endpoint_url={proxy.endpoint}"]
        return [sys.executable, str(ROOT / script), *address, *more]

    return words


def noisy_pictures(root: Path, num_pictures: int = 100) -> Path:
    """Write pictures of 43 kB, which nothing compresses."""
    draw = np.random.default_rng(0)
    for number in range(num_pictures):
        path = root / ("cat", "dog")[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.fromarray(draw.integers(256, size=(120, 120, 3), dtype=np.uint8))))
    return root


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    env = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(words, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=env)


def interrupt(process: subprocess.Popen[str], proxy: FaultProxy | None = None) -> str:
    """Send Ctrl-C, let the proxy drop what it holds, and return what the process printed, which must be little."""
    try:
        process.send_signal(signal.SIGINT)
        if proxy:
            proxy.release()
        said, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, complaint) == (75, "interrupted\n")
    return said


def test_a_publish_interrupted_while_it_stages_leaves_nothing(
    store: Store, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    root = class_folders(tmp_path / "pictures", num_pictures=3000)
    words = command("publish.py", "dataset=folder", "dataset.name=pets", f"dataset.source.root={root}")
    process = start(words, tmp_path)
    wait_until(lambda: list(tmp_path.glob("tmp/*/shard-00000.tar")), 60, "the first shard")
    said = interrupt(process)
    assert "Publishing" not in said  # the line that closes the staging
    assert list((tmp_path / "tmp").iterdir()) == []
    assert store.list("") == []


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ("^PUT .*shard-00002.tar", Hold()),
        ("^PUT .*manifest.json", Hold()),
        ("^PUT .*manifest.json", HoldAnswer()),
    ],
    ids=["while it uploads", "before the manifest", "after the manifest"],
)
def test_a_publish_interrupted_in_the_store_is_completed_by_the_next(
    proxy: FaultProxy,
    store: Store,
    command: Callable[..., list[str]],
    tmp_path: Path,
    request_: str,
    fault: Hold | HoldAnswer,
) -> None:
    root = noisy_pictures(tmp_path / "pictures")
    folder = ["dataset=folder", "dataset.name=pets", f"dataset.source.root={root}", "shard_megabytes=1"]
    proxy.on(request_, fault, times=1)
    proxy.on(request_, Refuse(400, "MustNotBeSentAgain"), times=10)
    process = start(command("publish.py", *folder), tmp_path)
    proxy.wait_for_faults()
    interrupt(process, proxy)
    held = store.list("datasets/pets/v1/shard")
    assert ("datasets/pets/v1/shard-00002.tar" in held) == ("manifest" in request_)
    assert is_held(store, "pets", "v1") == isinstance(fault, HoldAnswer)
    assert list((tmp_path / "tmp").iterdir()) == []
    proxy.forget()

    done = subprocess.run(
        command("publish.py", *folder), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert proxy.count("^PUT .*shard") == len(store.list("datasets/pets/v1/shard")) - len(held)
    assert ("already published" in done.stdout) == isinstance(fault, HoldAnswer)
    verified = command("publish.py", "action=verify", "dataset.name=pets")
    assert subprocess.run(verified, cwd=tmp_path, check=False, timeout=120).returncode == 0


def test_a_download_interrupted_is_completed_by_the_next(
    proxy: FaultProxy, store: Store, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    root = noisy_pictures(tmp_path / "pictures")
    publish = command("publish.py", "dataset=folder", "dataset.name=pets", f"dataset.source.root={root}")
    subprocess.run([*publish, "shard_megabytes=1"], cwd=tmp_path, check=True, timeout=120)
    pull = command("publish.py", "action=pull", "dataset.name=pets", "to=pulled")
    proxy.on("^GET .*shard-00001.tar", Hold(), times=1)

    process = start(pull, tmp_path)
    proxy.wait_for_faults()
    assert f"fetching {store.uri}/datasets/pets/v1/shard-00001.tar" in interrupt(process, proxy)
    blobs = tmp_path / "outputs/cache/blobs"
    for path in (path for path in blobs.iterdir() if path.suffix != ".lock"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert subprocess.run(pull, cwd=tmp_path, check=False, timeout=120).returncode == 0
    pulled = {path.read_bytes() for path in (tmp_path / "pulled").rglob("*.png")}
    assert pulled == {path.read_bytes() for path in root.rglob("*.png")}


def test_two_trainers_on_an_empty_cache_download_once(
    proxy: FaultProxy, store: Store, uri: str, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    root = class_folders(tmp_path / "pictures", num_pictures=40)
    publish = command("publish.py", "dataset=folder", "dataset.name=pets", f"dataset.source.root={root}")
    subprocess.run(publish, cwd=tmp_path, check=True, timeout=120)
    fresh_database(tmp_path / "outputs")
    tiny = [word for word in TINY if not word.startswith(("dataset=", "dataset.source"))]
    published = ["dataset=published", "dataset.name=pets", "dataset.positive_class=cat"]
    train = command("train.py", *published, *tiny, "trainer.max_epochs=1")
    proxy.forget()
    proxy.on("^GET .*index.parquet", Hold(), times=1)

    trainers = [start([*train, f"paths.run={tmp_path / name}"], tmp_path) for name in ("one", "two")]
    # Each begins with the manifest; the first to come then holds up the second in front of an empty cache.
    wait_until(lambda: proxy.count("^GET .*manifest.json") >= 4 and proxy.faults, 120, "both trainers to begin")
    proxy.release()
    said = [trainer.communicate(timeout=180) for trainer in trainers]
    assert [trainer.returncode for trainer in trainers] == [0, 0], said
    assert proxy.count("^GET .*shard-00000.tar") == 1
    assert proxy.count("^GET .*index.parquet") == 2  # one was dropped
