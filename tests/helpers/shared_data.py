"""Real pictures that lie beside the checkout, where a machine has them."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def shared_pictures(name: str, folder: Path) -> Path:
    """Unpack `<name>.tar.xz` below `folder`, or skip the test; with CI=true a missing file is a failure."""
    archive = Path(os.environ.get("FLATFIX_SHARED_DATA", ROOT.parent / "shared" / "data")) / f"{name}.tar.xz"
    if not archive.is_file():
        message = f"needs {archive} (FLATFIX_SHARED_DATA names another folder)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    target = folder / name
    if not target.is_dir():
        with tarfile.open(archive) as file:
            file.extractall(target, filter="data")
    return target
