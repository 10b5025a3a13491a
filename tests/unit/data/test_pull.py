from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flatfix.data.blobs import file_sha256
from flatfix.data.publish import publish
from flatfix.data.pull import pull
from flatfix.data.sources.base import Record
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import DamagedVersionError, open_version
from flatfix.errors import UserError
from tests.helpers.images import MemorySource, class_folders, colours, encode, records


def published(source, tmp_path, **options):
    store = LocalStore(tmp_path / "store")
    publish(source, store, name="pets", version="v1", rule=SplitRule(0, 0), **options)
    return open_version(store, "pets", "v1")


def test_a_pulled_folder_is_the_one_that_was_published(tmp_path):
    root = class_folders(tmp_path / "pictures", splits=("train", "val", "test"))
    for split, form in (("train", "JPEG"), ("test", "BMP")):
        (root / split / "cat" / "ein Bild é.jpg").write_bytes(encode(colours(seed=len(form)), form))
    (root / "val" / "dog" / "deep").mkdir()
    (root / "val" / "dog" / "deep" / ("x" * 200 + ".jpeg")).write_bytes(encode(colours(seed=77), "JPEG"))
    version = published(FolderSource(root), tmp_path, shard_bytes=10_000)

    (tmp_path / "pulled").mkdir()
    pull(version, tmp_path / "pulled")

    def files(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert len(version.manifest.shards) > 2
    assert files(tmp_path / "pulled") == files(root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "pulled", "store"]


def test_a_pulled_folder_has_the_classes_and_splits_of_the_version(tmp_path):
    version = published(FolderSource(class_folders(tmp_path / "pictures")), tmp_path)

    pull(version, tmp_path / "new" / "pulled")

    again = FolderSource(tmp_path / "new" / "pulled")
    expected = {(row["split"], row["label"], f"{row['split']}/{row['id']}") for row in version.index().to_pylist()}
    assert {(record.split, record.label, record.id) for record in again.records()} == expected


def test_ids_that_would_be_one_file_without_their_class_keep_it(tmp_path):
    some = [replace(record, split="train") for record in records(20)]
    some += [replace(some[0], id=id, location=id) for id in ("cat/same", "same", "train/cat/same")]
    version = published(MemorySource(some), tmp_path)

    pull(version, tmp_path / "pulled")

    assert {path.relative_to(tmp_path / "pulled").as_posix() for path in (tmp_path / "pulled").rglob("same.png")} == {
        "train/cat/same.png",
        "train/cat/cat/same.png",
        "train/cat/train/cat/same.png",
    }


def test_names_that_no_disk_takes_are_cut_and_stay_apart(tmp_path):
    ids = [f"cat/{letter * 300}{end}" for letter in "xé" for end in "ab"]
    ids += [f"cat/{'folder' * 50}/{end}" for end in "ab"]
    ids += [f"cat/{'y' * 251}", f"cat/{'y' * 252}"]  # .png makes the first one 255 bytes
    some = [*records(20, split="train"), *(Record(id, "cat", id, "png", "train") for id in ids)]
    version = published(MemorySource(some), tmp_path)

    pull(version, tmp_path / "pulled")

    files = list((tmp_path / "pulled").rglob("*.png"))
    contents = sorted(path.read_bytes() for path in files)
    assert contents == sorted(MemorySource(some).read(record) for record in some)
    class_folder = tmp_path / "pulled/train/cat"
    names = [
        path.relative_to(class_folder).as_posix() for path in files if len(str(path)) > len(str(class_folder)) + 99
    ]
    assert len(names) == len(ids)
    assert f"{'y' * 251}.png" in names
    digits = hashlib.sha256(f"{'y' * 252}.png".encode()).hexdigest()[:32]
    assert f"{'y' * 218}~{digits}.png" in names
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert [len(folder) for folder in folders] == [255]


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    version = published(MemorySource(records()), tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")

    for folder in (tmp_path / "taken", tmp_path / "taken" / "mine"):
        with pytest.raises(UserError, match=r"to=.*there is something already"):
            pull(version, folder)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine"]


def test_a_damaged_version_leaves_no_folder(tmp_path):
    version = published(MemorySource(records()), tmp_path, shard_bytes=10_000)
    shard = tmp_path / "store/datasets/pets/v1" / version.manifest.shards[-1].name
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")

    with pytest.raises(DamagedVersionError):
        pull(version, tmp_path / "pulled")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("label", ["../../cat", ".cat", "c" * 256])
def test_a_class_that_cannot_be_a_folder_is_refused(tmp_path, label):
    some = [replace(record, label=label if record.label == "cat" else "dog") for record in records()]
    version = published(MemorySource(some, classes=(label, "dog")), tmp_path)

    with pytest.raises(UserError, match=rf"the class {label!r} of pets cannot be a visible folder"):
        pull(version, tmp_path / "pulled")


@pytest.mark.parametrize("id", ["../../escaped", "/escaped", "cat//escaped"])
def test_no_picture_of_a_foreign_index_is_written_outside_the_folder(tmp_path, id):
    version = published(MemorySource(records(4)), tmp_path)
    path = tmp_path / "store" / "datasets" / "pets" / "v1" / "index.parquet"
    index = version.index()
    ids = [id, *index["id"].to_pylist()[1:]]
    pq.write_table(index.set_column(0, index.schema.field("id"), pa.array(ids)), path)
    foreign = replace(version, manifest=replace(version.manifest, index_sha256=file_sha256(path)))

    with pytest.raises(UserError, match=r"action=pull: '.*escaped.*' of pets would not lie in the folder"):
        pull(foreign, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
