from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flatfix.inference.package import MODEL, DamagedPackageError, Package, open_package
from flatfix.serving.last_good import POINTER, Facts, LastGood
from tests.helpers.small_disk import mounted

Packages = tuple[Package, Package]


def facts(package: Package, version: int) -> Facts:
    return Facts("tires", version, "5b0f", package.digest)


def kept_packages(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", megabytes=5) as disk:
        yield disk


def test_what_was_kept_last_is_opened_and_nothing_older_stays(packages: Packages, tmp_path: Path) -> None:
    last_good = LastGood(tmp_path / "last")
    assert last_good.open() is None
    assert not (tmp_path / "last").exists()
    for number, package in enumerate(packages, 1):
        last_good.keep(package, facts(package, number))
        opened = LastGood(tmp_path / "last").open()
        assert opened == (open_package(tmp_path / "last" / package.digest), facts(package, number))
        assert kept_packages(tmp_path / "last") == [package.digest]


def test_the_package_is_a_copy_and_needs_nothing_of_where_it_came_from(packages: Packages, tmp_path: Path) -> None:
    source = shutil.copytree(packages[0].folder, tmp_path / "source")
    LastGood(tmp_path / "last").keep(open_package(source), facts(packages[0], 1))
    shutil.rmtree(source)
    opened = LastGood(tmp_path / "last").open()
    assert opened and opened[0].digest == packages[0].digest


@pytest.mark.parametrize("damage", ["model", "pointer", "folder", "digest"])
def test_a_damaged_one_is_not_opened_but_told_and_made_good_by_the_next(
    packages: Packages, tmp_path: Path, logged: list[logging.LogRecord], damage: str
) -> None:
    last_good = LastGood(tmp_path)
    last_good.keep(packages[0], facts(packages[0], 1))
    pointer, folder = tmp_path / POINTER, tmp_path / packages[0].digest
    match damage:
        case "model":
            (folder / MODEL).write_bytes(b"damaged")
        case "pointer":
            pointer.write_text("{")
        case "folder":
            shutil.rmtree(folder)
        case "digest":
            pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "digest": "../../elsewhere"}))
    assert last_good.open() is None
    assert [record.getMessage() for record in logged] == ["last_good_unusable"]
    last_good.keep(packages[0], facts(packages[0], 1))
    assert last_good.open() is not None


def test_a_package_that_was_changed_since_is_not_kept_and_the_one_before_stays(
    packages: Packages, tmp_path: Path
) -> None:
    last_good = LastGood(tmp_path / "last")
    last_good.keep(packages[0], facts(packages[0], 1))
    source = open_package(shutil.copytree(packages[1].folder, tmp_path / "source"))
    source.path(MODEL).write_bytes(b"damaged")
    with pytest.raises(DamagedPackageError, match="changed since"):
        last_good.keep(source, facts(source, 2))
    opened = last_good.open()
    assert opened and opened[1].version == 1
    assert kept_packages(tmp_path / "last") == [packages[0].digest]


def test_on_a_full_disk_the_one_before_stays(packages: Packages, small_disk: Path) -> None:
    last_good = LastGood(small_disk)
    last_good.keep(packages[0], facts(packages[0], 1))
    with pytest.raises(OSError, match="No space left"):
        last_good.keep(packages[1], facts(packages[1], 2))
    opened = last_good.open()
    assert opened and opened[1].version == 1
    assert kept_packages(small_disk) == [packages[0].digest]


def test_what_a_killed_process_left_is_removed(packages: Packages, tmp_path: Path) -> None:
    (tmp_path / ".0123-abc" / "whole").mkdir(parents=True)
    LastGood(tmp_path).keep(packages[0], facts(packages[0], 1))
    assert kept_packages(tmp_path) == [packages[0].digest]


def test_many_who_keep_and_open_at_once_always_find_a_whole_one(packages: Packages, tmp_path: Path) -> None:
    LastGood(tmp_path).keep(packages[0], facts(packages[0], 1))

    def keep_and_open(number: int) -> bool:
        package = packages[number % 2]
        LastGood(tmp_path).keep(package, facts(package, number))
        return LastGood(tmp_path).open() is not None

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(keep_and_open, range(24)))
    assert len(kept_packages(tmp_path)) == 1


def test_servers_of_other_aliases_models_and_registries_keep_theirs_apart(tmp_path: Path) -> None:
    asked = [
        (uri, name, alias)
        for uri in ("sqlite:///a.db", "http://b")
        for name in (None, "tires")
        for alias in ("production", "staging", "../production")
    ]
    folders = {LastGood.of(tmp_path, *each).folder for each in asked}
    assert len(folders) == len(asked)
    assert {folder.parent for folder in folders} == {tmp_path}
    assert LastGood.of(tmp_path, *asked[0]).folder == LastGood.of(tmp_path, *asked[0]).folder
