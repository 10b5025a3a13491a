"""What a full disk leaves behind, on a real one of a few megabytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.images import class_folders
from tests.helpers.small_disk import mounted

PUBLISH = """
import sys
from flatfix.data.publish import publish
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
publish(FolderSource(sys.argv[1]), LocalStore(sys.argv[2]), name="pets", version="v1", rule=SplitRule())
"""
DECODE = """
import sys
from pathlib import Path
from flatfix.data.cache import PART_OF_FREE, decoded
from flatfix.data import cache
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version
cache.PART_OF_FREE = 1000  # as if there had been room when it was looked for
version = open_version(LocalStore(sys.argv[1]), "pets", "v1")
decoded(version, "train", image_size=256, resize="squash", cache_dir=Path(sys.argv[2]))
"""
PULL = """
import sys
from pathlib import Path
from flatfix.data.pull import pull
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version
pull(open_version(LocalStore(sys.argv[1]), "pets", "v1"), Path(sys.argv[2], "pulled"))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", megabytes=1) as disk:
        yield disk


def run(script: str, *arguments: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | variables)


def test_publishing_says_where_room_is_missing_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pictures", num_pictures=1000)

    done = run(PUBLISH, root, tmp_path / "store", TMPDIR=str(small_disk))

    assert done.returncode and "UserError: TMPDIR: no space left" in done.stderr
    assert not (tmp_path / "store").exists() and not list(small_disk.iterdir())


@pytest.mark.parametrize(("script", "num_pictures", "option"), [(DECODE, 20, "paths.cache"), (PULL, 1000, "to")])
def test_decoding_and_pulling_say_where_room_is_missing_and_leave_nothing(
    small_disk: Path, tmp_path: Path, script: str, num_pictures: int, option: str
) -> None:
    root = class_folders(tmp_path / "pictures", num_pictures=num_pictures)
    assert run(PUBLISH, root, tmp_path / "store").returncode == 0

    done = run(script, tmp_path / "store", small_disk)

    assert done.returncode == 1 and f"UserError: {option}: no space left" in done.stderr
    assert not list(small_disk.iterdir())
