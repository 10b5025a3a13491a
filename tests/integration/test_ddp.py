from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from flatfix.config.exit_codes import ExitCode
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.measures import measure
from flatfix.evaluation.predictions import Predictions
from flatfix.models.classifier import load_checkpoint
from flatfix.training.result import RunResult
from tests.helpers.compose import ROOT, TINY
from tests.helpers.mlflow_db import fresh_database

pytestmark = pytest.mark.slow

Train = Callable[..., RunResult]
PATIENCE_S = 120
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# Of 96 pictures, without batch normalisation. Adam would enlarge what the order of a sum changes.
ONE_STEP_AN_EPOCH = ("model=tiny_vgg", "trainer.max_epochs=20", "optimizer=sgd", "optimizer.lr=0.1")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many as each of two processes has on a small machine: sums do not depend on how they are divided."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def curve(result: RunResult, key: str) -> list[float]:
    lines = (Path(result.folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [fact["value"] for fact in map(json.loads, lines) if fact["key"] == key]


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    assert result.checkpoint
    content: dict[str, torch.Tensor] = torch.load(result.checkpoint, weights_only=True)["state_dict"]
    return content


def test_two_processes_learn_what_one_learns_from_batches_twice_as_large(run_tiny: Train) -> None:
    alone = run_tiny(*ONE_STEP_AN_EPOCH, "dataset.batch_size=96", name="alone")
    together = run_tiny(*ONE_STEP_AN_EPOCH, "dataset.batch_size=48", "trainer=ddp_cpu", name="together")

    for key in ("train/loss", "val/loss"):
        expected = curve(alone, key)
        assert len(expected) == 20
        assert curve(together, key) == pytest.approx(expected, abs=1e-4)
    assert curve(alone, "train/loss")[-1] < curve(alone, "train/loss")[0] - 0.01
    assert torch.allclose(*(weights(each)["classifier.head.weight"] for each in (alone, together)), atol=1e-4)


def test_two_processes_judge_each_picture_once_as_one_process_does(run_tiny: Train, output: Path) -> None:
    result = run_tiny("trainer=ddp_cpu", "dataset.batch_size=7")  # 40 pictures: 7, 7, 6 and 7, 7, 6
    table = pq.read_table(Path(result.folder) / "evaluation" / "predictions.parquet").to_pydict()
    assert len(set(table["id"])) == len(table["id"]) == 40

    classifier = load_checkpoint(Path(str(result.checkpoint)))
    (decoded,) = (output / "cache").rglob("*test*.npy")
    with torch.inference_mode():
        pictures = torch.from_numpy(np.load(decoded))
        logits = torch.cat([classifier(batch).logits for batch in pictures.split(7)])
    classes = classifier.spec.classes
    labels = np.array([classes.index(label) for label in table["label"]])
    said = Predictions(table["id"], labels, logits.double().softmax(1).numpy(), classes)
    decision = classifier.spec.decision
    for name, value in measure(Answers.of(said, decision)).test.items():
        assert result.test[name] == value, name


def test_rank_zero_alone_prints_tracks_and_leaves_files(
    run_tiny: Train, client: MlflowClient, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run_tiny("trainer=ddp_cpu", "model=efficientnet_lite0", "trainer.max_epochs=1")  # a frozen backbone
    said = capfd.readouterr()
    assert said.out.count("epoch 1/1") == said.out.count("dataset: ") == 1
    assert said.err == ""
    assert not children()

    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.devices"] == "2"
    for key in ("train/loss", "val/accuracy", "images_per_second"):
        assert len(client.get_metric_history(result.run_id, key)) == 1


def test_a_sweep_is_told_by_rank_zero_and_its_answer_stops_both(run_tiny: Train) -> None:
    reports: list[int] = []

    def leads_nowhere(num_epochs: int, value: float) -> bool:
        reports.append(num_epochs)
        return num_epochs == 2

    result = run_tiny("trainer=ddp_cpu", "trainer.max_epochs=9", report=leads_nowhere)
    assert (result.is_pruned, result.num_epochs, reports) == (True, 2, [1, 2])


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def training(
    folder: Path,
    *words: str,
    launcher: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    output: str = "",
) -> Iterator[subprocess.Popen[str]]:
    """Start a training of two processes that lasts, and end it and what is left of it afterwards."""
    command = [*(launcher or [sys.executable]), "train.py", *TINY, "trainer=ddp_cpu", "trainer.max_epochs=5000", *words]
    with (folder / (output or "out")).open("w") as out, (folder / (output or "err")).open("w") as err:
        process = subprocess.Popen(
            [*command, f"paths.output={folder}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            text=True,
            stdout=out,
            stderr=err,
        )
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for each in [*family, process]:
            try:
                each.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                pass
        process.wait()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.1)


def trains(folder: Path) -> bool:
    return "epoch    3/5000" in (folder / "out").read_text()


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def only_run(folder: Path) -> tuple[str, dict[str, str]]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return run.info.status, run.data.tags


def test_a_rank_that_is_killed_ends_the_run_with_one_error(tmp_path: Path) -> None:
    fresh_database(tmp_path)
    with training(tmp_path) as process:
        wait_for(lambda: trains(tmp_path))
        (other,) = psutil.Process(process.pid).children()
        began = time.monotonic()
        other.kill()
        assert process.wait(PATIENCE_S) == ExitCode.ERROR
        assert time.monotonic() - began < 30  # 1 s, and what a busy machine needs to take a process down
    error = (tmp_path / "err").read_text()
    assert error.startswith(f"error: the process of rank 1 ({other.pid}) ended: killed by SIGKILL")
    assert error.count("\n") == 1
    status, tags = only_run(tmp_path)
    assert status == "FAILED"
    assert "killed by SIGKILL" in tags["status_reason"]


def test_a_rank_of_torchrun_that_is_killed_ends_the_run_as_failed(tmp_path: Path) -> None:
    fresh_database(tmp_path)
    with training(tmp_path, launcher=TORCHRUN) as process:
        wait_for(lambda: trains(tmp_path))
        ranks = {each.environ().get("RANK"): each for each in psutil.Process(process.pid).children()}
        ranks["1"].kill()
        assert process.wait(PATIENCE_S) == 1  # torchrun's own
        assert is_gone(ranks["0"])
    error = (tmp_path / "err").read_text()
    assert error.count("error: another process is gone: ") == 1
    assert re.search(rf"exitcode *: {ExitCode.ERROR:d} \(pid: {ranks['0'].pid}\)", error)
    status, tags = only_run(tmp_path)
    assert status == "FAILED"
    assert "another process is gone" in tags["status_reason"]


def test_processes_of_srun_that_are_asked_to_end_leave_the_code_to_rank_zero(tmp_path: Path) -> None:
    fresh_database(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "1"}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    tasks = [{**step, **where, "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]
    with training(tmp_path, env=tasks[0]) as zero, training(tmp_path, env=tasks[1], output="other") as other:
        wait_for(lambda: trains(tmp_path))
        for process in (zero, other):
            process.send_signal(signal.SIGTERM)
        assert (zero.wait(PATIENCE_S), other.wait(PATIENCE_S)) == (ExitCode.INTERRUPTED, ExitCode.DONE)
    status, tags = only_run(tmp_path)
    assert (status, tags["resumable"]) == ("KILLED", "true")
    assert not (tmp_path / "err").read_text() + (tmp_path / "other").read_text()


def test_no_rank_outlives_rank_zero(tmp_path: Path) -> None:
    fresh_database(tmp_path)
    with training(tmp_path) as process:
        wait_for(lambda: trains(tmp_path))
        (other,) = psutil.Process(process.pid).children()
        process.kill()
        wait_for(lambda: is_gone(other))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_rank_zero_saves_and_ends_both_and_the_run_goes_on_from_there(
    tmp_path: Path, number: signal.Signals
) -> None:
    fresh_database(tmp_path)
    with training(tmp_path) as process:
        wait_for(lambda: trains(tmp_path))
        (other,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == ExitCode.INTERRUPTED
        assert is_gone(other)
    status, tags = only_run(tmp_path)
    assert (status, tags["resumable"]) == ("KILLED", "true")
    assert not (tmp_path / "err").read_text()

    with training(tmp_path, "resume.from=auto") as process:
        wait_for(lambda: "epoch" in (tmp_path / "out").read_text().partition("goes on from")[2].partition("\n")[2])
    (folder,) = (tmp_path / "runs").iterdir()
    facts = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [fact["step"] for fact in facts if fact["key"] == "val/loss"]
    assert epochs == list(range(len(epochs)))


def test_torchrun_starts_the_same_training_in_one_folder(tmp_path: Path) -> None:
    fresh_database(tmp_path)
    with training(tmp_path, "trainer.max_epochs=2", launcher=TORCHRUN) as process:
        assert process.wait(PATIENCE_S) == 0, (tmp_path / "err").read_text()
    assert (tmp_path / "out").read_text().count("epoch 2/2") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / ".hydra").is_dir()
    assert only_run(tmp_path)[0] == "FINISHED"


def test_a_wrong_launch_is_refused_once(tmp_path: Path) -> None:
    fresh_database(tmp_path)
    with training(tmp_path, "trainer=default", launcher=TORCHRUN) as process:
        assert process.wait(PATIENCE_S) == 1  # torchrun's own
    assert (tmp_path / "err").read_text().count("2 processes were started") == 1
