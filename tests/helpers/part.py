"""A pytest plugin that runs one part of the tests: `python -m pytest -p tests.helpers.part --part 1/4`.

A test's part follows from its id alone, so that adding a test moves no other one, and every machine agrees.
"""

from __future__ import annotations

import argparse
import zlib
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Part:
    index: int
    num_parts: int

    def holds(self, test_id: str) -> bool:
        return zlib.crc32(test_id.encode()) % self.num_parts == self.index


def parse(text: str) -> Part:
    index, slash, num_parts = text.partition("/")
    if not (slash and index.isdecimal() and num_parts.isdecimal() and int(index) < int(num_parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/K with 0 <= I < K, as in 1/4")
    return Part(int(index), int(num_parts))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", type=parse, metavar="I/K", help="run part I of K of the tests, counted from 0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("part")
    if part is None:
        return
    elsewhere = [item for item in items if not part.holds(item.nodeid)]
    items[:] = [item for item in items if part.holds(item.nodeid)]
    config.hook.pytest_deselected(items=elsewhere)
