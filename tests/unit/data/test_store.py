from __future__ import annotations

import threading
from hashlib import sha256

import pytest

from flatfix.data.blobs import DamagedFileError
from flatfix.data.store import LocalStore, StoreConflictError, open_store
from flatfix.errors import UserError
from tests.helpers.server import wait_until

OF_FILE = sha256(b"from a file").hexdigest()


def test_what_is_put_is_read_back(tmp_path):
    store = LocalStore(tmp_path / "store")
    (tmp_path / "file").write_bytes(b"from a file")

    store.put_bytes("a/b/one", b"1")
    num_bytes = []
    store.put_file("a/two", tmp_path / "file", OF_FILE, num_bytes.append)

    assert store.read("a/b/one") == b"1"
    assert sum(num_bytes) == 11
    assert store.holds("a/two", OF_FILE) and not store.holds("a/b/one", OF_FILE) and not store.holds("a/six", OF_FILE)
    assert store.fetch("a/two", OF_FILE) == store.root / "a/two"
    assert (tmp_path / "file").exists()
    assert store.exists("a/two") and not store.exists("a/b") and not store.exists("a/three")


def test_putting_again_replaces(tmp_path):
    store = LocalStore(tmp_path)

    store.put_bytes("key", b"old")
    store.put_bytes("key", b"new")

    assert store.read("key") == b"new"


def test_an_exclusive_put_fails_when_the_key_is_taken_and_changes_nothing(tmp_path):
    store = LocalStore(tmp_path)
    store.put_bytes("key", b"first", exclusive=True)

    with pytest.raises(StoreConflictError, match="key"):
        store.put_bytes("key", b"second", exclusive=True)

    assert store.read("key") == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_of_many_exclusive_writers_one_wins(tmp_path):
    store = LocalStore(tmp_path)
    results = []

    def write(number):
        try:
            store.put_bytes("key", str(number).encode(), exclusive=True)
            results.append(number)
        except StoreConflictError:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(results) == 1
    assert store.read("key") == str(results[0]).encode()


def test_list_returns_sorted_keys_under_a_prefix_without_unfinished_files(tmp_path):
    store = LocalStore(tmp_path)
    for key in ("datasets/b/1/manifest.json", "datasets/a/1/manifest.json", "datasets/a/10/x", "other/y"):
        store.put_bytes(key, b"")
    (tmp_path / "datasets/a/1/.0123.partial").write_bytes(b"")

    assert store.list("datasets/") == ["datasets/a/1/manifest.json", "datasets/a/10/x", "datasets/b/1/manifest.json"]
    assert store.list("datasets/a/1") == ["datasets/a/1/manifest.json", "datasets/a/10/x"]
    assert store.list("datasets/a/1/") == ["datasets/a/1/manifest.json"]
    assert len(store.list("")) == 4
    assert store.list("nothing/") == []


def test_a_store_that_does_not_exist_is_empty_and_is_not_made_by_looking(tmp_path):
    store = LocalStore(tmp_path / "none")

    assert store.list("datasets/") == []
    assert not store.exists("key")
    with pytest.raises(FileNotFoundError):
        store.read("key")
    with pytest.raises(FileNotFoundError):
        store.fetch("key", sha256(b"").hexdigest())
    assert not (tmp_path / "none").exists()


def test_a_folder_and_its_file_address_are_the_same_store(tmp_path):
    folder = tmp_path / "with space"

    store = LocalStore(folder)

    assert store.uri.startswith("file:///")
    assert LocalStore(store.uri).root == LocalStore(str(folder)).root == folder
    assert store.is_local


def test_another_kind_of_address_is_refused():
    with pytest.raises(UserError, match=r"store\.uri=s3://bucket/key.* with store=s3"):
        open_store({"uri": "s3://bucket/key"}, "cache")


def test_a_file_with_another_content_is_not_handed_out(tmp_path):
    store = LocalStore(tmp_path)
    store.put_bytes("key", b"onf")

    with pytest.raises(DamagedFileError):
        store.fetch("key", sha256(b"one").hexdigest())


def test_a_second_publisher_waits_and_says_so(tmp_path, capsys):
    store = LocalStore(tmp_path)
    order = []
    said = []

    def second():
        with store.lock("datasets/pets/v1") as confirm:
            confirm()
            order.append("second")

    def is_waiting():
        said.append(capsys.readouterr().out)
        return f"waiting for another process, which publishes to {tmp_path / 'datasets/pets/v1'}" in "".join(said)

    thread = threading.Thread(target=second)
    with store.lock("datasets/pets/v1"):
        thread.start()
        wait_until(is_waiting, 10, "the second to wait")
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert store.list("") == []
