"""Real pictures that lie beside the checkout, where a machine has them."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def shared_pictures(name: str, folder: Path, per_folder: int | None = None) -> Path:
    """Unpack `<name>.tar.xz` below `folder`, or skip the test; with CI=true a missing file is a failure.

    With `per_folder`, only so many pictures of each folder are unpacked.
    """
    archive = Path(os.environ.get("FLATFIX_SHARED_DATA", ROOT.parent / "shared" / "data")) / f"{name}.tar.xz"
    if not archive.is_file():
        message = f"needs {archive} (FLATFIX_SHARED_DATA names another folder)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    target = folder / name
    if not target.is_dir():
        with tarfile.open(archive) as file:
            file.extractall(target, members=_first(file, per_folder) if per_folder else None, filter="data")
    return target


def _first(file: tarfile.TarFile, count: int) -> Iterator[tarfile.TarInfo]:
    taken: Counter[Path] = Counter()
    for member in file:
        taken[Path(member.name).parent] += member.isfile()
        if taken[Path(member.name).parent] <= count:
            yield member
