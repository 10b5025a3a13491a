from __future__ import annotations

import functools
import hashlib
import pickle
import subprocess
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from flatfix.data.publish import publish
from flatfix.data.sources.cifar10 import BATCHES, Cifar10Source
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.errors import UserError
from flatfix.inference.decode import decode
from tests.helpers.images import class_folders

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """Write small files of torchvision's form, and let torchvision expect their checksums in place of the real ones."""
    folder = tmp_path / "written" / BATCHES
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*TRAIN, "test_batch"]:
        labels = rng.permutation(np.arange(20) % 10).tolist()
        data = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))
    with tarfile.open(tmp_path / "written" / CIFAR10.filename, "w:gz") as archive:
        archive.add(folder, BATCHES)

    def expected(name):
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    archive = tmp_path / "written" / CIFAR10.filename
    monkeypatch.setattr(CIFAR10, "train_list", [expected(name) for name in TRAIN])
    monkeypatch.setattr(CIFAR10, "test_list", [expected("test_batch")])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": expected("batches.meta")[1]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return folder.parent


@pytest.fixture
def served(batches, monkeypatch):
    handler = functools.partial(SimpleHTTPRequestHandler, directory=batches)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}")
        yield
        server.shutdown()


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    monkeypatch.setattr(CIFAR10, "url", (tmp_path / "no such archive").as_uri())


def test_a_folder_of_pictures_gives_the_version_that_dataset_folder_gives(tmp_path):
    root = class_folders(tmp_path / "pictures", CLASSES, num_pictures=4, splits=("train", "test"))
    source, folder, store = Cifar10Source(str(root)), FolderSource(root), LocalStore(tmp_path / "store")

    assert source.classes == tuple(CLASSES)
    assert source.records() == folder.records()
    first = publish(source, store, name="cifar10", version="v1", rule=SplitRule())
    assert first.digest == publish(folder, store, name="cifar10", version="v2", rule=SplitRule()).digest


def test_a_folder_of_pictures_needs_no_torch(tmp_path):
    root = class_folders(tmp_path, CLASSES, num_pictures=1, splits=("train", "test"))
    code = (
        "import sys; from flatfix.data.sources.cifar10 import Cifar10Source\n"
        f"assert len(Cifar10Source({str(root)!r}).records()) == 20 and 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_files_of_torchvision_give_its_pixels_labels_and_splits(batches):
    source = Cifar10Source(batches, download=False)
    records = source.records()

    assert source.classes == tuple(CLASSES)
    assert len(records) == 120
    for split, reference in (("train", CIFAR10(batches)), ("test", CIFAR10(batches, train=False))):
        some = [record for record in records if record.split == split]
        for index, (record, (picture, label)) in enumerate(zip(some, reference, strict=True)):
            assert (record.id, record.extension) == (f"{split}/{CLASSES[label]}/{index:05d}", "png")
            assert record.label == CLASSES[label]
            np.testing.assert_array_equal(decode(source.read(record)), np.asarray(picture))


def test_the_files_of_torchvision_are_published_with_val_drawn_from_train(batches, tmp_path):
    store = LocalStore(tmp_path / "store")

    manifest = publish(Cifar10Source(batches), store, name="cifar10", version="v1", rule=SplitRule(val_fraction=0.1))

    assert [manifest.num(split) for split in ("train", "val", "test")] == [90, 10, 20]


def test_a_root_that_is_not_there_is_filled_by_a_download(batches, served, tmp_path):
    source = Cifar10Source(tmp_path / "downloaded")

    assert source.records() == Cifar10Source(batches, download=False).records()


@pytest.mark.parametrize("has_folder", [False, True])
def test_a_download_that_fails_says_what_to_do(tmp_path, nowhere, has_folder):
    if has_folder:
        (tmp_path / "root").mkdir()

    with pytest.raises(UserError) as error:
        Cifar10Source(tmp_path / "root").classes  # noqa: B018

    assert str(error.value).startswith("dataset.source.download=true: CIFAR-10 could not be downloaded to ")
    assert f"dataset.source.root={tmp_path / 'root'} (" in str(error.value)
    assert "No such file" in str(error.value)
    assert "name a dataset.source.root that holds train/<class>/<pictures>" in str(error.value)


def test_a_damaged_file_of_torchvision_is_not_read(batches):
    path = batches / BATCHES / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    with pytest.raises(UserError, match=r"dataset\.source\.root=.*not all of it.*dataset\.source\.download=true"):
        Cifar10Source(batches, download=False).records()


def test_a_root_without_pictures_is_refused_when_nothing_may_be_downloaded(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.source\.root=.*/empty: no cifar-10-batches-py in it"):
        Cifar10Source(tmp_path / "empty", download=False).records()


def test_a_folder_of_something_else_is_refused_and_nothing_is_downloaded_into_it(tmp_path, nowhere):
    (tmp_path / "train").mkdir()
    (tmp_path / "other").mkdir()

    with pytest.raises(UserError, match="the split folders train lie beside others: other"):
        Cifar10Source(tmp_path).records()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "train"]


def test_building_and_describing_a_source_looks_at_nothing():
    assert Cifar10Source("/no/such/folder").describe() == {"kind": "cifar10", "root": "/no/such/folder"}
