from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from flatfix.errors import UserError
from flatfix.tracking import Run, Status, outbox, preflight
from flatfix.tracking.connection import connect
from flatfix.tracking.run import RESUMABLE
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.server import wait_until


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return fresh_database(tmp_path)


@pytest.fixture
def start(uri: str, tmp_path: Path) -> Callable[..., Run]:
    def start_run(name: str = "run", **options: Any) -> Run:
        return Run.start(uri, preflight(uri, "exp"), name=name, tags={}, buffer_dir=tmp_path / name, **options)

    return start_run


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.01)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_all_that_is_logged_is_in_mlflow(uri: str, tmp_path: Path) -> None:
    before = time.time() * 1000
    run = Run.start(uri, preflight(uri, "exp"), name="baseline", tags={"dataset": "elpv"}, buffer_dir=tmp_path / "b")
    run.log_params({"model.name": "cnn", "seed": 7, "none": None})
    for step in range(5):
        run.log_metrics({"train/loss": 1 / (step + 1), "val/accuracy": step / 10}, step)
    run.set_tags({"qualified": True})
    run.log_text("lr: 0.1\n", "config/resolved.yaml")
    run.log_dict({"numpy": "2"}, "provenance.json")
    file = tmp_path / "predictions.csv"
    file.write_text("id\n")
    run.log_artifact(file, "evaluation")
    run.log_artifact(file)
    assert run.end("FINISHED") is None

    client = MlflowClient(uri)
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "baseline"
    assert before <= found.info.start_time <= found.info.end_time <= time.time() * 1000
    assert found.data.params == {"model.name": "cnn", "seed": "7", "none": "None"}
    assert {"dataset": "elpv", "qualified": "True"}.items() <= found.data.tags.items()
    assert {"mlflow.user", "mlflow.source.name"} <= set(found.data.tags)
    history = client.get_metric_history(run.run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == [(step, 1 / (step + 1)) for step in range(5)]
    artifacts = Path(found.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(tmp_path / "mlartifacts" / "exp")
    assert (artifacts / "config" / "resolved.yaml").read_text() == "lr: 0.1\n"
    assert json.loads((artifacts / "provenance.json").read_text()) == {"numpy": "2"}
    assert (artifacts / "evaluation" / "predictions.csv").exists()
    assert (artifacts / "predictions.csv").exists()
    assert not (tmp_path / "b" / "unsent.jsonl").exists()


def test_a_folder_is_logged_with_its_name(start: Callable[..., Run], tmp_path: Path, uri: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "card.json").write_text("{}")
    run = start()
    run.log_artifact(package)
    assert run.end("FINISHED") is None
    assert [each.path for each in MlflowClient(uri).list_artifacts(run.run_id, "package")] == ["package/card.json"]


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_does_not_finish_keeps_its_status_and_reason(
    start: Callable[..., Run], uri: str, status: Status
) -> None:
    run = start()
    assert run.end(status, "loss is NaN in epoch 3") is None
    found = MlflowClient(uri).get_run(run.run_id)
    assert found.info.status == status
    assert found.data.tags["status_reason"] == "loss is NaN in epoch 3"


def test_ending_a_second_time_changes_nothing(start: Callable[..., Run], uri: str) -> None:
    run = start()
    assert run.end("KILLED") is None
    assert run.end("FINISHED") is None
    assert MlflowClient(uri).get_run(run.run_id).info.status == "KILLED"


def test_metrics_are_on_disk_when_the_call_returns(start: Callable[..., Run], tmp_path: Path) -> None:
    run = start()
    run.log_metrics({"val/loss": np.float32(0.5), "val/auroc": math.nan}, 3)
    first, second = rows(tmp_path / "run" / "metrics.jsonl")
    assert (first["key"], first["value"], first["step"]) == ("val/loss", 0.5, 3)
    assert math.isnan(second["value"])
    assert first["timestamp_ms"] == pytest.approx(time.time() * 1000, abs=60_000)
    run.end("FINISHED")


def test_values_that_are_not_finite_arrive(start: Callable[..., Run], uri: str) -> None:
    run = start()
    run.log_metrics({"nan": math.nan, "inf": math.inf}, 0)
    assert run.end("FINISHED") is None
    found = MlflowClient(uri).get_run(run.run_id).data.metrics
    assert math.isnan(found["nan"])
    assert found["inf"] > 1e300


def test_many_and_long_parameters_and_tags_are_cut_to_what_mlflow_takes(start: Callable[..., Run], uri: str) -> None:
    run = start()
    run.log_params({**{f"option.{index}": index for index in range(250)}, "long": "x" * 7000})
    run.set_tags({"long": "x" * 9000})
    assert run.end("FINISHED") is None
    found = MlflowClient(uri).get_run(run.run_id).data
    assert len(found.params) == 251
    assert found.params["long"] == "x" * 6000
    assert found.tags["long"] == "x" * 8000


def test_a_parameter_may_be_logged_again_with_the_same_value(start: Callable[..., Run], uri: str) -> None:
    run = start()
    run.log_params({"seed": 7, "lr": 0.1})
    run.log_params({"seed": 7, "lr": 0.1})
    assert run.end("FINISHED") is None
    assert MlflowClient(uri).get_run(run.run_id).data.params == {"seed": "7", "lr": "0.1"}


def test_what_mlflow_refuses_is_reported_at_the_end_and_the_rest_arrives(
    start: Callable[..., Run], uri: str, tmp_path: Path
) -> None:
    run = start()
    run.log_params({"seed": 7, "betas[0]": 0.9, "lr": 0.1})
    run.log_artifact(tmp_path / "gone.png")
    run.log_metrics({"loss": 1.0, "loss%": 1.0}, 0)
    sentence = run.end("FINISHED")
    assert sentence is not None
    unsent = tmp_path / "run" / "unsent.jsonl"
    assert f"1 param, 1 artifact, 1 metric of run {run.run_id}" in sentence
    assert "betas[0]" in sentence
    assert sentence.endswith(str(unsent))
    assert [(row["kind"], row["key"]) for row in rows(unsent)] == [
        ("param", "betas[0]"),
        ("artifact", ""),
        ("metric", "loss%"),
    ]
    assert all(row["reason"] for row in rows(unsent))
    found = MlflowClient(uri).get_run(run.run_id)
    assert (found.data.params, found.data.metrics) == ({"seed": "7", "lr": "0.1"}, {"loss": 1.0})
    assert found.info.status == "FINISHED"
    assert run.end("FINISHED") == sentence


def test_what_an_earlier_run_could_not_send_is_kept(start: Callable[..., Run], tmp_path: Path) -> None:
    for name in ("first%", "second%"):
        run = start("same")
        run.log_metrics({name: 1.0}, 0)
        run.end("FINISHED")
    assert [row["key"] for row in rows(tmp_path / "same" / "unsent.jsonl")] == ["first%", "second%"]


def test_a_child_is_shown_under_its_parent(start: Callable[..., Run], uri: str) -> None:
    parent = start("parent")
    child = start("child", parent_run_id=parent.run_id)
    assert MlflowClient(uri).get_parent_run(child.run_id).info.run_id == parent.run_id
    child.end("FINISHED")
    parent.end("FINISHED")


def test_a_run_that_was_interrupted_goes_on_as_itself(start: Callable[..., Run], uri: str, tmp_path: Path) -> None:
    first = start("first")
    first.log_metrics({"loss": 2.0}, 0)
    first.end("KILLED", "interrupted by SIGINT")
    second = Run.resume(uri, first.run_id, tmp_path / "first")
    found = MlflowClient(uri).get_run(first.run_id)
    assert found.info.status == "RUNNING"
    assert "status_reason" not in found.data.tags
    second.log_metrics({"loss": 1.0}, 1)
    assert second.history() == {0: {"loss": 2.0}, 1: {"loss": 1.0}}
    second.end("FINISHED")
    found = MlflowClient(uri).get_run(first.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["loss"] == 1.0


def test_a_run_that_is_gone_cannot_go_on(start: Callable[..., Run], uri: str, tmp_path: Path) -> None:
    thrown_away = start("thrown-away")
    thrown_away.end("FINISHED")
    MlflowClient(uri).delete_run(thrown_away.run_id)
    for run_id in (thrown_away.run_id, "0" * 32):
        with pytest.raises(UserError, match=f"has no run {run_id} to go on with"):
            Run.resume(uri, run_id, tmp_path / "second")


def test_a_run_that_goes_on_logs_each_parameter_and_each_step_of_a_metric_once(
    start: Callable[..., Run], uri: str, tmp_path: Path
) -> None:
    first = start()
    first.log_params({"seed": 7, "resume.from": None})
    for step in range(3):
        first.log_metrics({"loss": 1 / (step + 1)}, step)
    first.log_metrics({"accuracy": 0.5}, 2)
    first.end("KILLED", "interrupted by SIGTERM")
    second = Run.resume(uri, first.run_id, tmp_path / "run")
    second.log_params({"seed": 7, "resume.from": "auto", "late": 1})
    for step in (1, 2, 3):
        second.log_metrics({"loss": 10.0 + step, "accuracy": step}, step)
    assert second.end("FINISHED") is None
    client = MlflowClient(uri)
    losses = [(point.step, point.value) for point in client.get_metric_history(first.run_id, "loss")]
    assert losses == [(0, 1.0), (1, 1 / 2), (2, 1 / 3), (3, 13.0)]
    accuracies = [(point.step, point.value) for point in client.get_metric_history(first.run_id, "accuracy")]
    assert sorted(accuracies) == [(1, 1.0), (2, 0.5), (3, 3.0)]
    assert client.get_run(first.run_id).data.params == {"seed": "7", "resume.from": "None", "late": "1"}
    logged = [(row["key"], row["step"]) for row in rows(tmp_path / "run" / "metrics.jsonl")]
    assert len(logged) == len(set(logged)) == 7


def test_a_run_that_goes_on_sends_what_its_folder_has_and_the_server_lacks(
    start: Callable[..., Run], uri: str, tmp_path: Path
) -> None:
    first = start()
    first.log_metrics({"loss": 2.0}, 0)
    first.end("KILLED", "interrupted by SIGTERM")
    file = tmp_path / "run" / "metrics.jsonl"
    fact = rows(file)[0]
    with file.open("a") as kept:  # as a process leaves them whose machine dies during an outage
        kept.write(json.dumps(fact | {"step": 1}) + "\n" + json.dumps(fact | {"step": 2})[:-9])
    waiting = [("param", "seed", "7"), ("tag", "qualified", "true"), ("text", "note.txt", "kept\n")]
    waiting += [("tag", "resumable", "true"), ("tag", "status_reason", "SIGTERM"), ("status", "status", "KILLED")]
    unsent = tmp_path / "run" / "unsent.jsonl"
    unsent.write_text(
        "".join(
            json.dumps({**fact, "kind": kind, "key": key, "value": value, "step": 0}) + "\n"
            for kind, key, value in waiting
        )
    )
    second = Run.resume(uri, first.run_id, tmp_path / "run")
    second.log_params({"seed": 8})
    for step in (1, 2):
        second.log_metrics({"loss": float(step)}, step)
    assert unsent.exists()  # until all of it has arrived
    assert second.end("FINISHED") is None
    assert not unsent.exists()
    client = MlflowClient(uri)
    found = client.get_run(first.run_id)
    assert (found.info.status, found.data.params) == ("FINISHED", {"seed": "7"})
    assert found.data.tags["qualified"] == "true"
    assert not {"resumable", "status_reason"} & set(found.data.tags)
    assert Path(client.download_artifacts(first.run_id, "note.txt", str(tmp_path))).read_text() == "kept\n"
    losses = [(point.step, point.value) for point in client.get_metric_history(first.run_id, "loss")]
    assert losses == [(0, 2.0), (1, 2.0), (2, 2.0)]
    assert [row["step"] for row in rows(file)] == [0, 1, 2]


def test_what_a_run_that_goes_on_cannot_send_either_is_kept_once(
    start: Callable[..., Run], uri: str, tmp_path: Path
) -> None:
    first = start()
    first.log_params({"betas[0]": 0.9})
    assert first.end("KILLED")
    second = Run.resume(uri, first.run_id, tmp_path / "run")
    assert "1 param of run" in str(second.end("FINISHED"))
    assert [row["key"] for row in rows(tmp_path / "run" / "unsent.jsonl")] == ["betas[0]"]


def test_a_run_that_goes_on_is_not_resumable_while_it_runs(start: Callable[..., Run], uri: str, tmp_path: Path) -> None:
    first = start()
    first.set_tags({RESUMABLE: "true"})
    first.end("KILLED", "interrupted by SIGTERM")
    second = Run.resume(uri, first.run_id, tmp_path / "run")
    assert RESUMABLE not in MlflowClient(uri).get_run(first.run_id).data.tags
    second.end("FINISHED")


def test_a_run_stays_as_it_ended_until_all_that_it_logged_is_read(
    start: Callable[..., Run], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start()
    first.set_tags({RESUMABLE: "true"})
    first.log_metrics({"loss": 1.0}, 0)
    first.end("KILLED", "interrupted by SIGTERM")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "get_metric_history", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Run.resume(uri, first.run_id, tmp_path / "run")
    found = MlflowClient(uri).get_run(first.run_id)
    assert (found.info.status, found.data.tags[RESUMABLE]) == ("KILLED", "true")


def test_system_metrics_go_on_with_the_step_after_the_last(start: Callable[..., Run], uri: str, tmp_path: Path) -> None:
    first = start(system_metrics=True)
    first.end("KILLED")
    Run.resume(uri, first.run_id, tmp_path / "run", system_metrics=True).end("FINISHED")
    history = MlflowClient(uri).get_metric_history(first.run_id, "system/cpu_utilization_percentage")
    assert [point.step for point in history] == [0, 1]


def test_two_runs_in_one_process_share_nothing(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        uri = fresh_database(tmp_path / name)
        runs.append(Run.start(uri, preflight(uri, "exp"), name=name, tags={}, buffer_dir=tmp_path / name))
    for step in range(20):
        for value, run in enumerate(runs):
            run.log_metrics({"loss": value}, step)
    assert [run.end("FINISHED") for run in runs] == [None, None]
    for value, run in enumerate(runs):
        history = MlflowClient(run.uri).get_metric_history(run.run_id, "loss")
        assert [(each.step, each.value) for each in history] == [(step, value) for step in range(20)]
    assert not mlflow.is_tracking_uri_set()


def test_a_short_run_has_system_metrics_too_and_their_thread_ends_with_it(start: Callable[..., Run], uri: str) -> None:
    before = threading.active_count()
    run = start(system_metrics=True)
    assert run.end("FINISHED") is None
    assert threading.active_count() == before
    metrics = MlflowClient(uri).get_run(run.run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= set(metrics)


def test_system_metrics_are_sampled_as_mlflow_is_told_to(
    start: Callable[..., Run], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "2")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_NODE_ID", "node_3")
    run = start(system_metrics=True)
    file = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: file.read_text().count("cpu_utilization_percentage") >= 2, 10, "two logged samples")
    run.end("FINISHED")
    history = MlflowClient(uri).get_metric_history(run.run_id, "system/node_3/cpu_utilization_percentage")
    assert [each.step for each in history] == list(range(len(history)))


def test_a_run_prints_nothing_and_logging_takes_no_time(
    start: Callable[..., Run], capfd: pytest.CaptureFixture[str]
) -> None:
    run = start()
    durations_s = []
    for step in range(300):
        begin = time.perf_counter()
        run.log_metrics({"loss": 1.0, "accuracy": 0.5}, step)
        durations_s.append(time.perf_counter() - begin)
    run.end("FINISHED")
    assert sorted(durations_s)[297] < 0.05
    assert capfd.readouterr() == ("", "")


def test_a_database_that_cannot_be_written_for_a_while_gets_everything_later(
    start: Callable[..., Run], uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = start()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("alter table metrics rename to elsewhere")
    for step in range(10):
        run.log_metrics({"loss": 1.0}, step)
    run.log_params({"seed": 7})
    wait_until(lambda: "is lost (" in capfd.readouterr().out, 10, "the trouble to be noticed")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("alter table elsewhere rename to metrics")
    assert run.end("FINISHED") is None
    history = MlflowClient(uri).get_metric_history(run.run_id, "loss")
    assert [each.step for each in history] == list(range(10))
    assert MlflowClient(uri).get_run(run.run_id).data.params == {"seed": "7"}


def test_what_a_deleted_run_did_not_take_is_kept(
    start: Callable[..., Run], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LOST_PATIENCE_S", 0.2)
    run = start()
    MlflowClient(uri).delete_run(run.run_id)
    run.log_metrics({"loss": 1.0}, 0)
    sentence = run.end("FINISHED")
    assert sentence is not None
    assert f"1 metric, 1 status of run {run.run_id} (the run has been deleted)" in sentence
    assert [row["kind"] for row in rows(tmp_path / "run" / "unsent.jsonl")] == ["metric", "status"]


def test_ctrl_c_while_a_run_ends_leaves_what_is_unsent_in_its_file(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"
    run = Run(connect(nobody), "0" * 32, nobody, tmp_path)
    run.log_metrics({"loss": 1.0}, 0)
    interrupt = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])
    interrupt.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.end("KILLED")
    assert [row["kind"] for row in rows(tmp_path / "unsent.jsonl")] == ["metric", "status"]
    assert time.monotonic() - begin < 5
    assert "ConnectionRefusedError" in str(run.end("KILLED"))


def test_importing_the_package_does_not_import_mlflow() -> None:
    script = "import sys, flatfix.tracking; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, check=True)
