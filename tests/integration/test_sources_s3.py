from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
import torch

from flatfix.config.instantiate import build
from flatfix.data import s3
from flatfix.data.manifest import Manifest
from flatfix.data.publish import publish
from flatfix.data.pull import pull
from flatfix.data.sources.annotations import AnnotationsSource
from flatfix.data.sources.base import Source
from flatfix.data.sources.cifar10 import Cifar10Source
from flatfix.data.sources.csv import CsvSource
from flatfix.data.sources.folder import FolderSource
from flatfix.data.sources.s3_tree import S3Tree
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.unlabelled import find_pictures
from flatfix.data.version import open_version
from flatfix.errors import UserError
from flatfix.prediction.checkpoint import model_of
from flatfix.prediction.run import predict
from flatfix.training.run import train
from tests.helpers.compose import TINY, compose_train
from tests.helpers.images import blank_png, class_folders, colours, encode
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.models import make_classifier
from tests.helpers.s3_server import S3Server, use_aws

pytestmark = pytest.mark.service


@pytest.fixture
def uri(s3_server: S3Server, tmp_path: Path) -> str:
    return f"s3://{s3_server.bucket}/{tmp_path.name}"


def upload(server: S3Server, folder: Path, uri: str) -> None:
    for path in folder.rglob("*.*"):
        server.put(f"{key_of(uri)}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def key_of(uri: str) -> str:
    return s3.split(uri)[1]


def put_pictures(server: S3Server, uri: str, names: list[str]) -> None:
    for seed, name in enumerate(names):
        server.put(f"{key_of(uri)}/{name}", encode(colours(12, 16, seed)))


def freeze(source: Source, folder: Path, version: str = "v1") -> Manifest:
    return publish(source, LocalStore(folder / "store"), name="pets", version=version, rule=SplitRule())


def refused(source: Source) -> str:
    with pytest.raises(UserError) as error:
        source.records()
    return str(error.value)


@pytest.mark.parametrize("splits", [(), ("train", "valid", "Test")])
def test_class_folders_in_s3_are_the_version_that_they_are_on_a_disk(
    s3_server: S3Server, uri: str, tmp_path: Path, splits: tuple[str, ...]
) -> None:
    folder = class_folders(tmp_path / "pictures", num_pictures=12, splits=splits)
    upload(s3_server, folder, uri)
    s3_server.put(f"{key_of(uri)} of others/fish/1.png", b"below another prefix that begins alike")
    source = FolderSource(uri)

    assert source.classes == ("cat", "dog")
    assert sorted(source.records(), key=lambda record: record.id) == sorted(
        FolderSource(folder).records(), key=lambda record: record.id
    )
    assert source.describe() == {"kind": "folder", "root": uri} == FolderSource(f"{uri}/").describe()
    assert (source.num_readers, FolderSource(folder).num_readers) == (s3.CONNECTIONS, None)
    assert freeze(source, tmp_path).digest == freeze(FolderSource(folder), tmp_path, "v2").digest


def test_cifar10_is_read_from_s3_in_class_folders_only(s3_server: S3Server, uri: str, tmp_path: Path) -> None:
    upload(s3_server, class_folders(tmp_path / "pictures", num_pictures=2, splits=("train", "test")), uri)

    assert Cifar10Source(uri).records() == FolderSource(uri).records()
    assert Cifar10Source(uri).describe() == {"kind": "cifar10", "root": uri}
    assert refused(Cifar10Source(f"{uri}/none")).startswith(f"dataset.source.root={uri}/none: no such folder")


def rows_of(folder: Path) -> list[tuple[str, str]]:
    return [(f"{label}/{number:03d}.png", label) for label in ("dog", "cat") for number in range(12)]


def annotations(rows: list[tuple[str, str]]) -> bytes:
    data = [{"FilePath": path, "label_value": label} for path, label in rows]
    return json.dumps({"annotation": {"data": data}}).encode()


def table(rows: list[tuple[str, str]]) -> bytes:
    return "\n".join(["path,label", *map(",".join, rows)]).encode()


FORMS = {"annotations.json": (AnnotationsSource, annotations), "table.csv": (CsvSource, table)}


@pytest.mark.parametrize("name", FORMS)
def test_file_and_pictures_may_each_lie_in_s3_or_on_a_disk(
    s3_server: S3Server, uri: str, tmp_path: Path, name: str
) -> None:
    kind, write = FORMS[name]
    folder = class_folders(tmp_path / "pictures", num_pictures=12)
    upload(s3_server, folder, uri)
    (tmp_path / name).write_bytes(write(rows_of(folder)))
    s3_server.put(f"{key_of(uri)}/{name}", write(rows_of(folder)))

    expected = kind(tmp_path / name, folder)
    sources = [kind(f"{uri}/{name}", uri), kind(tmp_path / name, uri), kind(f"{uri}/{name}", folder)]

    assert [source.records() for source in sources] == [expected.records()] * 3
    assert [source.num_readers for source in sources] == [s3.CONNECTIONS, s3.CONNECTIONS, None]
    assert sources[0].describe() == {"kind": kind.kind, "file": f"{uri}/{name}", "root": uri}
    assert {freeze(source, tmp_path, f"v{number}").digest for number, source in enumerate([expected, *sources])} == {
        freeze(expected, tmp_path, "expected").digest
    }


@pytest.mark.parametrize("name", FORMS)
def test_paths_below_a_bucket_are_keys(s3_server: S3Server, uri: str, tmp_path: Path, name: str) -> None:
    kind, write = FORMS[name]
    folder = class_folders(tmp_path / "pictures", num_pictures=12)
    upload(s3_server, folder, uri)
    rows = [(f"{key_of(uri)}/{path}", label) for path, label in rows_of(folder)]
    file = s3_server.put(f"{key_of(uri)}/{name}", write(rows))

    source = kind(file, f"s3://{s3_server.bucket}")

    assert [record.location for record in source.records()] == [path for path, _ in rows]
    assert source.read(source.records()[0]) == (folder / "dog/000.png").read_bytes()


def test_a_run_publishes_from_s3_what_the_options_name(s3_server: S3Server, uri: str, tmp_path: Path) -> None:
    upload(s3_server, class_folders(tmp_path / "pictures", num_pictures=2), uri)
    words = ["dataset=annotations", "dataset.name=pets", f"dataset.source.file={uri}/x.json"]
    s3_server.put(f"{key_of(uri)}/x.json", annotations([("cat/000.png", "cat"), ("dog/000.png", "dog")]))

    source = build(compose_train(tmp_path, *words, f"dataset.source.root={uri}")["dataset"]["source"], "dataset.source")

    assert [record.id for record in source.records()] == ["cat/000", "dog/000"]


ODD = {
    "cat/A b+%20?#&='\".JPG": "cat/A b+%20?#&='\"",
    "cat/日本/写真.png": "cat/日本/写真",
    "cat/e\u0301.png": "cat/é",
    "cat/line\nbreak\x07.png": "cat/line_break_",
    "cat/ lead and tail .png": "cat/ lead and tail ",
    "dog/v1.2/a.b.tiff": "dog/v1_2/a_b",
    "dog/x.png/y.png": "dog/x_png/y",
    "dog/heic.HEIC": "dog/heic",
}
LEFT_OUT = (
    "cat/",
    "cat/empty/",
    ".hidden/1.png",
    "cat/.hidden.png",
    "cat/.git/1.png",
    "cat/notes.txt",
    "top.png",
    "x/",
)


def test_keys_of_every_kind_are_read_and_become_ids(s3_server: S3Server, uri: str, tmp_path: Path) -> None:
    put_pictures(s3_server, uri, [*ODD, *(f"{label}/{number}.png" for label in ("cat", "dog") for number in range(9))])
    for name in LEFT_OUT[:-1]:
        s3_server.put(f"{key_of(uri)}/{name}", b"")
    source = FolderSource(uri)

    locations = {record.location for record in source.records()}
    assert locations == {*ODD, *(f"{label}/{number}.png" for label in ("cat", "dog") for number in range(9))}
    freeze(source, tmp_path)
    ids = open_version(LocalStore(tmp_path / "store"), "pets", "v1").index()["id"].to_pylist()
    assert set(ODD.values()) < set(ids)

    s3_server.put(f"{key_of(uri)}/{LEFT_OUT[-1]}", b"")
    assert "no picture in the class folder x." in refused(FolderSource(uri))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_listed_path_finds_its_key_however_its_accents_are_composed(
    s3_server: S3Server, uri: str, tmp_path: Path, form: str
) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    names = [unicodedata.normalize(form, name) for name in ("fêlé/é.png", "ok/1.png")]
    put_pictures(s3_server, uri, names)
    file = tmp_path / "table.csv"
    rows = [(unicodedata.normalize(other, name), name[:2]) for name in names]
    file.write_bytes(table(rows))

    source = CsvSource(file, uri)

    assert [record.location for record in source.records()] == names
    assert all(source.read(record) for record in source.records())
    file.write_bytes(table([*rows, (names[0], names[0][:2])]))
    assert f"{names[0]} is listed again, after line 2" in refused(CsvSource(file, uri))


def test_listed_paths_that_are_no_keys_are_named(s3_server: S3Server, uri: str, tmp_path: Path) -> None:
    put_pictures(s3_server, uri, ["cat/1.png", "dog/1.png"])
    s3_server.put(f"{key_of(uri)}/cat/folder.png/", b"")
    file = tmp_path / "labels.json"
    paths = ["cat//1.png", "dog/1.png", "../1.png", "/cat/1.png", "cat/2.png", "cat/folder.png", f"{uri}/cat/1.png"]
    file.write_bytes(annotations([(path, path[:3]) for path in paths]))

    message = refused(AnnotationsSource(file, uri))

    assert "annotation.data[0]" not in message and "annotation.data[1]" not in message
    assert "annotation.data[2]: ../1.png leads out of dataset.source.root\n" in message
    assert "annotation.data[3]: /cat/1.png is absolute\n" in message
    assert "annotation.data[4]: cat/2.png does not exist\n" in message
    assert "annotation.data[5]: cat/folder.png does not exist\n" in message
    assert "annotation.data[6]: the path is an address, where a key below dataset.source.root is expected\n" in message
    assert message.endswith(f"Paths are relative to dataset.source.root={uri}.")


class Lister(BaseHTTPRequestHandler):
    """Answer every listing with one key, as AWS answers for keys that SeaweedFS never holds."""

    def __init__(self, key: str, *args: Any) -> None:
        self.key = key
        super().__init__(*args)

    def do_GET(self) -> None:
        answer = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>odd</Name>'
            f"<IsTruncated>false</IsTruncated><EncodingType>url</EncodingType><KeyCount>1</KeyCount>"
            f"<Contents><Key>{quote(self.key)}</Key><Size>1</Size></Contents></ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def lister(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Lister, request.param)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        use_aws(monkeypatch, AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
        yield request.param
        server.shutdown()


@pytest.mark.parametrize("lister", ["p/cat//1.png", "p//cat/1.png", "p/cat/../dog/1.png", "p/./1.png"], indirect=True)
def test_a_key_that_is_no_path_is_refused_by_its_name(lister: str) -> None:
    message = refused(FolderSource("s3://odd/p"))

    assert message.startswith("dataset.source.root=s3://odd/p: ")
    assert f"the key s3://odd/{lister} has an empty part, or one of dots: rename this object" in message


def test_a_listing_streams(s3_server: S3Server, uri: str) -> None:
    names = [f"cat/{number:04d}.png" for number in range(1_100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: s3_server.put(f"{key_of(uri)}/{name}", b""), names))
    asked: list[str] = []
    s3.client().meta.events.register("before-call.s3", lambda model, **_: asked.append(model.name))

    pictures = S3Tree(uri).pictures()
    assert asked == []
    assert next(pictures) == names[0]
    assert asked == ["ListObjectsV2"]
    assert list(pictures) == names[1:]
    assert asked == ["ListObjectsV2"] * 2


def test_names_of_300_characters_are_published_trained_on_predicted_and_pulled(
    s3_server: S3Server, uri: str, tmp_path: Path
) -> None:
    ends = [f"{number:02d}" for number in range(12)]
    names = [f"{label}/{letter * 300}{end}.png" for label, letter in (("cat", "x"), ("dog", "é")) for end in ends]
    put_pictures(s3_server, uri, names)
    fresh_database(tmp_path)
    words = ["dataset=folder", "dataset.name=pets", f"dataset.source.root={uri}", "dataset.positive_class=cat"]
    words += [*TINY[3:], "dataset.batch_size=4", "trainer.max_epochs=1", "report=true"]

    result = train(compose_train(tmp_path, *words))

    stems = {name.removesuffix(".png") for name in names}
    version = open_version(LocalStore(tmp_path / "store"), "pets", "v1")
    assert set(version.index()["id"].to_pylist()) == stems
    tested = pq.read_table(next((tmp_path / "runs").rglob("predictions.parquet")))["id"].to_pylist()
    assert result.status == "FINISHED" and len(tested) == version.manifest.num("test") and set(tested) < stems

    model = model_of(make_classifier(), torch.device("cpu"), "checkpoint=tiny.ckpt")
    predict(model, find_pictures(uri), tmp_path / "out.parquet", batch_size=8)
    assert set(pq.read_table(tmp_path / "out.parquet")["path"].to_pylist()) == {f"{uri}/{name}" for name in names}

    pull(version, tmp_path / "pulled")
    files = list((tmp_path / "pulled").rglob("*.png"))
    assert len({path.name for path in files}) == len(names)
    assert {len(path.name.encode()) for path in files} <= {254, 255}
    assert sorted(path.read_bytes() for path in files) == sorted(
        FolderSource(uri).read(record) for record in FolderSource(uri).records()
    )


def jpeg_claiming(width: int, height: int) -> bytes:
    """Return a small JPEG whose header announces that many pixels."""
    data = bytearray(encode(colours(16, 16), "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


PUBLISH = r"""
import re, sys
from pathlib import Path
from flatfix.data.publish import publish
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.errors import UserError
try:
    publish(FolderSource(sys.argv[1]), LocalStore(Path(sys.argv[2])), name="pets", version="v1", rule=SplitRule())
except UserError as error:
    print(error)
print("peak", re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_pictures_that_claim_too_many_pixels_are_named_and_no_memory_is_spent_on_them(
    s3_server: S3Server, uri: str, tmp_path: Path
) -> None:
    def said(name: str) -> tuple[str, int]:
        command = [sys.executable, "-c", PUBLISH, f"{uri}/{name}", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        text, _, peak = done.stdout.rpartition("peak ")
        return text, int(peak) << 10

    names = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(9)]
    for folder in ("sound", "huge"):
        put_pictures(s3_server, f"{uri}/{folder}", names)
    s3_server.put(f"{key_of(uri)}/huge/cat/huge.png", blank_png(60_000, 60_000))
    s3_server.put(f"{key_of(uri)}/huge/dog/huge.jpg", jpeg_claiming(60_000, 60_000))

    _, usual = said("sound")
    text, peak = said("huge")

    assert "2 unreadable pictures, nothing was published:" in text
    for name in ("cat/huge.png", "dog/huge.jpg"):
        assert re.search(rf"{name}: .*(60000 x 60000|3600000000) pixels", text), text
    assert peak < usual + (32 << 20)  # a byte a pixel would be 3.6 GB
    assert not list((tmp_path / "huge").rglob("*"))


def test_what_is_not_there_or_may_not_be_read_is_named_with_its_option(
    s3_server: S3Server, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_pictures(s3_server, uri, [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(9)])
    (tmp_path / "table.csv").write_bytes(table([("cat/0.png", "cat"), ("dog/0.png", "dog")]))
    root, file = "dataset.source.root", "dataset.source.file"

    for source in (FolderSource("s3://gone/a"), CsvSource(tmp_path / "table.csv", "s3://gone/a")):
        assert refused(source).startswith(f"{root}=s3://gone/a: s3://gone/a/: no such bucket at {s3_server.endpoint}.")
    assert refused(FolderSource(f"{uri}/gone")).startswith(f"{root}={uri}/gone: no such folder")
    assert refused(CsvSource(tmp_path / "table.csv", f"{uri}/gone")) == f"{root}={uri}/gone: no such folder."
    assert refused(CsvSource(f"{uri}/t.csv", uri)) == f"{file}={uri}/t.csv: {uri}/t.csv: no such object."
    assert refused(FolderSource("s3://")).startswith(f"{root}=s3://: s3://: names no bucket.")

    s3_server.become("lister", monkeypatch)
    with pytest.raises(UserError, match=rf"18 unreadable pictures.*:\s+cat/0\.png: {uri}/cat/0\.png: .*Access Denied"):
        freeze(FolderSource(uri), tmp_path)
    assert refused(CsvSource(f"{uri}/t.csv", uri)).startswith(f"{file}={uri}/t.csv: ")
    s3_server.become("stranger", monkeypatch)
    assert refused(FolderSource(uri)).startswith(f"{root}={uri}: {uri}/: InvalidAccessKeyId: ")


def test_a_server_that_dies_while_pictures_are_read_ends_the_publish(
    s3_server: S3Server, uri: str, tmp_path: Path
) -> None:
    put_pictures(s3_server, uri, [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(9)])
    source = FolderSource(uri)
    assert len(source.records()) == 18
    s3_server.kill()

    with pytest.raises(UserError, match=rf"dataset\.source\.root={uri}: {uri}/.*: Could not connect to the endpoint"):
        freeze(source, tmp_path)
    assert not (tmp_path / "store").exists()

    s3_server.start()
    assert freeze(source, tmp_path).num("train") > 0
