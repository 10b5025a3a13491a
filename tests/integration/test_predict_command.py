from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from flatfix.inference.decision import Decision
from tests.helpers.compose import ROOT
from tests.helpers.images import class_folders
from tests.helpers.models import make_classifier, save_checkpoint
from tests.helpers.server import wait_until


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose model reviews every picture that it does not call defective."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    classifier = make_classifier(classes=("ok", "defective"))
    torch.nn.init.normal_(classifier.head.weight, std=3)
    decision = Decision(positive=1, threshold=0.6, review=(0.0, 0.6), rule="threshold=0.6")
    classifier.spec = replace(classifier.spec, decision=decision)
    save_checkpoint(classifier, folder / "checkpoints/best.ckpt")
    return folder


def command(*words: str) -> list[str]:
    return [sys.executable, str(ROOT / "predict.py"), *words]


def predict(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_folder_is_predicted_with_the_best_checkpoint_of_a_run(run_folder: Path, tmp_path: Path) -> None:
    class_folders(tmp_path / "new", num_pictures=20)
    words = [f"checkpoint={run_folder}", "input=new", "batch_size=7"]
    done = predict(tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert [row["path"] for row in rows] == [f"new/{name}/{n:03d}.png" for name in ("cat", "dog") for n in range(20)]
    assert {(row["class"], row["decision"]) for row in rows} == {("defective", "defective"), ("ok", "review")}
    assert min(row["probability"] for row in rows if row["class"] == "defective") >= 0.6
    num_review = sum(row["decision"] == "review" for row in rows)
    assert f"predictions.parquet: 40 pictures, {num_review} for review" in done.stdout
    assert "Predicting: 40 pictures in " in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "predictions.parquet"]


def test_unreadable_pictures_are_named_and_end_with_1_and_wrong_usage_with_2(run_folder: Path, tmp_path: Path) -> None:
    class_folders(tmp_path / "new", num_pictures=10)
    (tmp_path / "new/dog/003.png").write_bytes(b"nothing")
    words = [f"checkpoint={run_folder}/checkpoints/best.ckpt", "input=new", "output=out/today.csv"]
    done = predict(tmp_path, *words)
    assert done.returncode == 1
    assert done.stderr.startswith("1 of them cannot be read:\n  new/dog/003.png: not a picture in a known format")
    with (tmp_path / "out/today.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert rows[13] == {"path": "new/dog/003.png", "class": "", "probability": "", "decision": "unreadable"}

    refused = predict(tmp_path, *words, "output=today.xlsx")
    assert refused.returncode == 2
    assert "output=today.xlsx: unknown ending '.xlsx'. Valid: .parquet, .csv" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_interrupted_prediction_ends_with_75_and_leaves_the_output_of_before(
    run_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    class_folders(tmp_path / "new", num_pictures=1)
    (tmp_path / "list.txt").write_text("new/cat/000.png\n" * 1_000_000, encoding="utf-8")  # some minutes
    (tmp_path / "out").mkdir()
    (tmp_path / "out/all.csv").write_text("of yesterday", encoding="utf-8")
    words = [f"checkpoint={run_folder}", "input=list.txt", "output=out/all.csv"]
    process = subprocess.Popen(
        command(*words),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        wait_until(
            lambda: process.poll() is not None or any(path.stat().st_size for path in tmp_path.glob("out/.*.partial")),
            60,
            "the first rows",
        )
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75, complaint
    assert complaint == "interrupted\n"
    assert (tmp_path / "out/all.csv").read_text(encoding="utf-8") == "of yesterday"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["all.csv"]
