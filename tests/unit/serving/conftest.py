from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from flatfix.inference.package import Package
from flatfix.registry.versions import Version
from tests.helpers.serving import Shelf, promoted, two_packages


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
    """Two packages of the same kind, of which one says the other class than the other."""
    return two_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def promoted_once(
    packages: tuple[Package, Package], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Shelf, list[Version]]:
    """The packages as versions 1 and 2, for copies."""
    return promoted(tmp_path_factory.mktemp("promoted"), packages)


@pytest.fixture
def two(promoted_once: tuple[Shelf, list[Version]], tmp_path: Path) -> tuple[Shelf, list[Version]]:
    """Two versions, the first of them in production, whose artifacts other tests use too."""
    shelf, versions = promoted_once
    return shelf.copy(tmp_path), versions


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """What is logged, whether or not the lines of a server are passed on to other loggers."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("flatfix.serving")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)
