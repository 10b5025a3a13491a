from __future__ import annotations

from pathlib import Path

import pytest

from flatfix.inference.package import Package
from tests.helpers.packages import make_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder: Path = tmp_path_factory.mktemp("exported")
    return make_package(folder / "package")
