from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.compose import ROOT
from tests.helpers.mlflow_db import fresh_database

GUIDE = (ROOT / "docs" / "add-a-backbone.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([^`\n]+)`\n\n```\w+\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
COMMANDS = "".join(re.findall(r"^```bash\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)).splitlines()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository in which somebody has followed the guide."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("src", "conf", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name, text in FILES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(text, encoding="utf-8")
    fresh_database(folder / "outputs")
    return folder


def run(checkout: Path, *words: str) -> str:
    """Run Python on the copy, and return what it says when it ends well."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *words], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def follow(checkout: Path, command: str) -> str:
    """Run a command of the guide, on fewer pictures than it says."""
    python, *words = shlex.split(command)
    assert python == "python"
    return run(checkout, *words, *(["dataset.source.num_pictures=200"] if "dataset=tires" in words else []))


def test_the_guide_gives_a_file_of_code_and_one_of_config() -> None:
    assert list(FILES) == ["src/flatfix/models/backbones/depthwise.py", "conf/model/depthwise.yaml"]


@pytest.mark.slow
def test_a_backbone_made_by_the_guide_is_listed_and_runs(checkout: Path) -> None:
    show_help, try_it, _ = COMMANDS
    assert re.search(r"\bdepthwise\b", follow(checkout, show_help))
    assert "model: depthwise from random weights" in follow(checkout, try_it)


@pytest.mark.slow
def test_a_backbone_made_by_the_guide_learns_a_batch(checkout: Path) -> None:
    assert "overfit: yes" in follow(checkout, COMMANDS[-1])


@pytest.mark.slow
def test_the_tests_of_all_models_find_the_one_of_the_guide(checkout: Path) -> None:
    said = run(checkout, "-m", "pytest", "-k", "depthwise", "tests/unit/models", "-p", "no:cacheprovider")
    assert re.search(r"\b[7-9] passed", said)


def test_the_code_of_the_guide_is_in_our_style(checkout: Path) -> None:
    code = next(name for name in FILES if name.endswith(".py"))
    run(checkout, "-m", "ruff", "check", code)
    run(checkout, "-m", "ruff", "format", "--check", code)
