from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: a worker of pytest-xdist shares the cores with its siblings.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("session")
