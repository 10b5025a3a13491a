"""The recipes in conf/experiment reach what README says of them, through the real entry point."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    return json.loads(metrics.read_text(encoding="utf-8"))["test"], ended.stdout


def read_measures(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "outputs" / "runs").rglob("metrics.json")
    measures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return measures


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


def test_cifar10_from_its_folder_reaches_70_percent_and_calibration_lowers_the_error(tmp_path: Path) -> None:
    root = shared_pictures("cifar10", tmp_path)
    metrics, said = run(tmp_path, "experiment=cifar10", f"dataset.source.root={root}")
    before, after = read_measures(tmp_path)["calibration_error"]
    assert after < before / 2
    assert f"expected error on test {before:.4f} → {after:.4f}" in said
    assert metrics["accuracy"] >= 0.70


def test_the_asked_recall_lies_in_the_interval_of_the_recall_on_test(tmp_path: Path) -> None:
    metrics, said = run(tmp_path, "decision.recall_at_least=0.9")
    measures = read_measures(tmp_path)
    assert measures["validation"]["recall"] >= 0.9
    low, high = measures["intervals"]["recall"]
    assert low <= 0.9 <= high
    assert low <= metrics["recall"] <= high
    assert "(recall of at least 0.9 on validation)" in said


def test_photographs_of_tires_are_told_apart_where_training_did_not_walk(tmp_path: Path) -> None:
    root, arranged = shared_pictures("tires_flat_full", tmp_path), tmp_path / "arranged"
    for path in root.glob("*/*.jpg"):  # frames in the order of a film; those between two splits are left out
        frame = int(path.stem)
        split = "train" if frame < 170 else "val" if 180 <= frame < 215 else "test" if frame >= 225 else None
        if split:
            (arranged / split / path.parent.name).mkdir(parents=True, exist_ok=True)
            path.rename(arranged / split / path.parent.name / path.name)
    metrics, said = run(tmp_path, "experiment=tires_photos", f"dataset.source.root={arranged}")
    assert "\nqualified: accuracy" in said
    assert metrics["accuracy"] >= 0.75


def test_cifar10_trains_from_an_annotation_file(tmp_path: Path) -> None:
    root = shared_pictures("cifar10", tmp_path)
    named = [
        {"FilePath": path.relative_to(root).as_posix(), "label_value": path.parent.name}
        for path in sorted(root.glob("train/*/*.jpg"))
    ]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"annotation": {"data": named}}), encoding="utf-8")
    source = ["dataset=annotations", "dataset.name=named", f"dataset.source.file={file}", f"dataset.source.root={root}"]
    metrics, _ = run(tmp_path, "experiment=cifar10", *source, "dataset.image_size=32", "trainer.max_epochs=2")
    assert metrics["accuracy"] >= 0.5
