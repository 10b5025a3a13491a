from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256

import numpy as np
import pytest

from flatfix.data.blobs import Blobs, DamagedFileError, file_sha256
from flatfix.errors import UserError


def content(number, num_bytes=1000):
    return bytes([number]) * num_bytes


def name(data):
    return sha256(data).hexdigest()


def get(blobs, data):
    return blobs.get(name(data), lambda path: path.write_bytes(data))


def refuse(path):
    raise AssertionError("downloaded again")


def test_a_file_is_downloaded_once(tmp_path):
    blobs = Blobs(tmp_path / "blobs")
    path = get(blobs, b"one")

    assert path.read_bytes() == b"one"
    assert blobs.get(name(b"one"), refuse) == path
    assert blobs.find(name(b"one")) == path
    assert blobs.find(name(b"two")) is None


def test_threads_that_ask_at_once_share_one_download(tmp_path):
    blobs = Blobs(tmp_path)
    begin = threading.Barrier(8)
    downloads = []

    def download(path):
        downloads.append(path)
        path.write_bytes(b"one")

    def ask(_):
        begin.wait()
        return blobs.get(name(b"one"), download)

    with ThreadPoolExecutor(8) as pool:
        assert {path.read_bytes() for path in pool.map(ask, range(8))} == {b"one"}
    assert len(downloads) == 1


def test_threads_that_ask_for_many_files_get_each_its_own_and_keep_to_the_limit(tmp_path):
    blobs = Blobs(tmp_path, limit_bytes=20_000)

    def ask(number):
        with suppress(FileNotFoundError):  # gone again for a later one
            assert get(blobs, content(number)).read_bytes() == content(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, [*range(100)] * 2))
    get(blobs, content(0))
    kept = [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert 10 < len(kept) <= 20
    assert all(file_sha256(path) == path.name for path in kept)


def test_a_damaged_copy_is_downloaded_again_and_named(tmp_path, capsys):
    blobs = Blobs(tmp_path)
    path = get(blobs, b"one")
    path.write_bytes(b"onf")

    assert get(blobs, b"one").read_bytes() == b"one"
    assert f"{path}: damaged" in capsys.readouterr().out


@pytest.mark.parametrize("held", [b"", b"on"])
def test_a_damaged_download_is_refused_and_nothing_is_kept(tmp_path, held):
    blobs = Blobs(tmp_path)
    if held:
        (tmp_path / name(b"one")).write_bytes(held)

    with pytest.raises(DamagedFileError):
        blobs.get(name(b"one"), lambda path: path.write_bytes(b"onf"))

    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_download_that_fails_leaves_nothing_and_what_was_left_by_a_killed_one_is_overwritten(tmp_path):
    blobs = Blobs(tmp_path)

    def break_off(path):
        path.write_bytes(b"o")
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        blobs.get(name(b"one"), break_off)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    (tmp_path / f".{name(b'one')}.partial").write_bytes(b"left behind by a killed process")
    assert get(blobs, b"one").read_bytes() == b"one"


def test_the_least_recently_used_go_when_the_limit_is_passed(tmp_path):
    blobs = Blobs(tmp_path, limit_bytes=3000)
    paths = [get(blobs, content(number)) for number in range(3)]
    for age, path in enumerate(reversed(paths)):  # file systems tell times less than exactly
        os.utime(path, (1e9 - age, 1e9 - age))
    blobs.get(name(content(0)), refuse)

    fourth = get(blobs, content(3))

    assert [path.exists() for path in [*paths, fourth]] == [True, False, True, True]


def test_a_file_larger_than_the_limit_is_kept_until_the_next(tmp_path):
    blobs = Blobs(tmp_path, limit_bytes=500)
    first = get(blobs, content(1))
    assert first.exists()
    second = get(blobs, content(2))
    assert second.exists() and not first.exists()


def test_what_is_mapped_stays_readable_when_it_goes(tmp_path):
    blobs = Blobs(tmp_path, limit_bytes=1000)
    first = get(blobs, content(1))
    mapped = np.memmap(first, mode="r")

    get(blobs, content(2))

    assert not first.exists()
    assert bytes(mapped) == content(1)


def test_a_full_disk_names_the_options(tmp_path):
    blobs = Blobs(tmp_path)

    def fill(path):
        path.write_bytes(b"o")
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"ne")

    with pytest.raises(UserError, match=r"paths\.cache: no space left .* dataset\.cache_gigabytes") as error:
        blobs.get(name(b"one"), fill)
    assert error.value.__cause__.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
