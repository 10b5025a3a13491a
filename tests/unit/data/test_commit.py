from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from flatfix.data.commit import AT_ONCE, commit
from flatfix.data.store import LocalStore
from flatfix.data.version import is_held, open_version
from flatfix.errors import UserError
from tests.helpers.server import wait_until
from tests.helpers.versions import stage_noise


class WatchedStore(LocalStore):
    """Keep the names of the files that were put, and do before each what a test says."""

    def __init__(self, uri, before=lambda name, advance: None):
        super().__init__(uri)
        self.names = []
        self.before = before

    def put_file(self, key, path, sha256, advance):
        self.before(path.name, advance)
        super().put_file(key, path, sha256, advance)
        self.names.append(path.name)


@pytest.fixture
def store(tmp_path):
    return WatchedStore(tmp_path / "store")


def test_what_is_committed_is_the_folder(store, tmp_path, capsys):
    manifest = stage_noise(tmp_path / "staged")

    assert commit(store, manifest, tmp_path / "staged") == manifest

    version = open_version(store, "noise", "v1")
    assert version.manifest == manifest
    for shard in manifest.shards:
        assert version.shard(shard.name).read_bytes() == (tmp_path / "staged" / shard.name).read_bytes()
    assert capsys.readouterr().out.startswith("Storing: 0.0 MB in ")


def test_what_is_held_already_is_not_put_again(store, tmp_path, capsys):
    def fail(name, advance):
        if name == "shard-00002.tar":
            wait_until(lambda: len(store.names) >= 2, 10, "two other files")
            raise OSError("no connection")

    manifest = stage_noise(tmp_path / "staged")
    store.before = fail
    with pytest.raises(OSError, match="no connection"):
        commit(store, manifest, tmp_path / "staged")
    assert not is_held(store, "noise", "v1")
    held, store.names, store.before = store.names, [], lambda name, advance: None
    assert 2 <= len(held) <= 3
    capsys.readouterr()

    commit(store, manifest, tmp_path / "staged")

    assert sorted([*held, *store.names]) == ["index.parquet", *(f"shard-0000{number}.tar" for number in range(3))]
    assert f"{len(held)} of 4 files are in the store already" in capsys.readouterr().out
    assert all(open_version(store, "noise", "v1").shard(shard.name) for shard in manifest.shards)


def test_a_file_of_an_attempt_with_other_content_is_put_again(store, tmp_path):
    store.put_bytes("datasets/noise/v1/shard-00001.tar", b"of another source")
    manifest = stage_noise(tmp_path / "staged")

    commit(store, manifest, tmp_path / "staged")

    assert "shard-00001.tar" in store.names
    assert open_version(store, "noise", "v1").shard("shard-00001.tar").stat().st_size == 1000


def test_a_file_that_changes_behind_our_back_ends_it_before_the_manifest(store, tmp_path):
    class Meddled(WatchedStore):
        def put_file(self, key, path, sha256, advance):
            super().put_file(key, path, sha256, advance)
            if path.name == "index.parquet":
                self.put_bytes(key, b"of another")

    store = Meddled(tmp_path / "store")

    with pytest.raises(UserError, match=r"does not hold datasets/noise/v1/index\.parquet as it was just put there"):
        commit(store, stage_noise(tmp_path / "staged"), tmp_path / "staged")
    assert not is_held(store, "noise", "v1")


def test_an_error_ends_the_other_puts(store, tmp_path):
    ended = []

    def go_on_until_ended(name, advance):
        if name == "shard-00001.tar":
            raise OSError("no connection")
        try:
            while True:
                advance(0)
        except CancelledError:
            ended.append(name)
            raise

    store.before = go_on_until_ended
    with pytest.raises(OSError, match="no connection"):
        commit(store, stage_noise(tmp_path / "staged", [1000] * 40), tmp_path / "staged")
    assert "shard-00000.tar" in ended
    assert len(ended) <= AT_ONCE


def test_an_interrupt_while_the_puts_begin_ends_them(store, tmp_path, monkeypatch):
    has_begun = threading.Event()
    ended = []

    def go_on_until_ended(name, advance):
        has_begun.set()
        try:
            wait_until(lambda: advance(0), 10, "the end")
        except CancelledError:
            ended.append(name)
            raise

    class Interrupted(ThreadPoolExecutor):
        """Threads whose second put meets Ctrl-C on its way to them."""

        def submit(self, work, *args):
            if work.__name__ == "put" and has_begun.wait(10 if args[0].path.name == "shard-00001.tar" else 0):
                raise KeyboardInterrupt
            return super().submit(work, *args)

    monkeypatch.setattr("flatfix.data.commit.ThreadPoolExecutor", Interrupted)
    store.before = go_on_until_ended
    with pytest.raises(KeyboardInterrupt):
        commit(store, stage_noise(tmp_path / "staged"), tmp_path / "staged")
    assert ended == ["shard-00000.tar"]


def test_a_lock_that_is_lost_ends_it(tmp_path):
    class LosingStore(WatchedStore):
        @contextmanager
        def lock(self, prefix):
            def confirm():
                if self.names:
                    raise UserError("another publishes there now")

            yield confirm

    store = LosingStore(tmp_path / "store")
    with pytest.raises(UserError, match="another publishes there now"):
        commit(store, stage_noise(tmp_path / "staged", [1000] * 40), tmp_path / "staged")
    assert 1 <= len(store.names) < 40
    assert not is_held(store, "noise", "v1")
