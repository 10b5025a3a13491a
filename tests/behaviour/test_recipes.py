"""The recipes in conf/experiment reach what README says of them, through the real entry point."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.compose import ROOT
from tests.helpers.shared_data import shared_pictures

pytestmark = pytest.mark.slow


def run(folder: Path, *words: str) -> tuple[dict[str, float], str]:
    """Return the test metrics and what was printed."""
    ended = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=folder, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (metrics,) = sorted((folder / "outputs" / "runs").rglob("metrics.json"), key=lambda path: path.stat().st_mtime)[-1:]
    return json.loads(metrics.read_text(encoding="utf-8")), ended.stdout


def test_the_demonstration_reaches_82_percent_and_the_second_time_prepares_nothing(tmp_path: Path) -> None:
    metrics, said = run(tmp_path)
    assert metrics["accuracy"] >= 0.82
    assert "\nqualified: accuracy" in said
    again, said_again = run(tmp_path)
    assert again == metrics
    assert not re.search(r"^(Publishing|Decoding|features)", said_again, re.MULTILINE)


def test_drawn_treads_are_told_apart_by_a_small_network(tmp_path: Path) -> None:
    metrics, _ = run(tmp_path, "experiment=tires")
    assert metrics["accuracy"] >= 0.90


def test_cifar10_from_its_folder_reaches_70_percent(tmp_path: Path) -> None:
    root = shared_pictures("cifar10", tmp_path)
    metrics, _ = run(tmp_path, "experiment=cifar10", f"dataset.source.root={root}")
    assert metrics["accuracy"] >= 0.70
