from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers.compose import ROOT
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.reading import read_until

pytestmark = pytest.mark.service


def start_training(folder: Path, uri: str, *words: str) -> subprocess.Popen[str]:
    fixed = ["dataset=tires", "dataset.source.num_pictures=160", "dataset.source.size=32", "dataset.image_size=32"]
    fixed += ["dataset.batch_size=16", "model=cnn", "trainer.precision=32", f"tracking.uri={uri}"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *fixed, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_a_server_killed_mid_run_gets_everything_when_it_returns(tmp_path: Path) -> None:
    with MlflowServer(tmp_path / "server") as server:
        process = start_training(tmp_path, server.uri, "trainer.max_epochs=40")
        said = read_until(process, "epoch  2/40")
        server.kill()
        said += read_until(process, "epoch 10/40")
        server.start()
        rest, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said + rest
        client = MlflowClient(server.uri)
        (run,) = client.search_runs([client.get_experiment_by_name("flatfix").experiment_id])
        assert run.info.status == "FINISHED"
        losses = client.get_metric_history(run.info.run_id, "val/loss")
        assert [point.step for point in losses] == list(range(40))


def test_a_server_that_never_returns_costs_no_training_and_the_last_line_names_the_file(tmp_path: Path) -> None:
    with MlflowServer(tmp_path / "server") as server:
        process = start_training(tmp_path, server.uri, "trainer.max_epochs=6")
        said = read_until(process, "epoch 1/6")
        server.kill()
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said + rest
    assert "\nsee it: " in rest
    last = rest.strip().splitlines()[-1]
    kept = Path(last.rpartition("Kept in ")[2])
    assert kept.name == "unsent.jsonl"
    assert '"test/accuracy"' in kept.read_text(encoding="utf-8")


def test_a_server_that_is_not_there_is_an_error_before_any_data_is_read(tmp_path: Path) -> None:
    process = start_training(tmp_path, "http://127.0.0.1:9")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "tracking.uri=http://127.0.0.1:9" in said
    assert "Traceback" not in said
    assert not (tmp_path / "outputs" / "store").exists()
