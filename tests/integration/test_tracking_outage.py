from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from flatfix.errors import UserError
from flatfix.tracking import Run, outbox, preflight
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.server import wait_until

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def server(one_server: MlflowServer) -> MlflowServer:
    if not one_server.is_running:
        one_server.start()
    return one_server


@pytest.fixture
def start(server: MlflowServer, tmp_path: Path) -> Callable[..., Run]:
    def start_run(**options: Any) -> Run:
        experiment_id = preflight(server.uri, "exp")
        return Run.start(server.uri, experiment_id, name="run", tags={}, buffer_dir=tmp_path / "buffer", **options)

    return start_run


class Loop:
    """Stands in for training: it logs step after step, and keeps how long each call took."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.num_steps = 0
        self.durations_s: list[float] = []

    def go_on(self, num_steps: int) -> None:
        for step in range(self.num_steps, self.num_steps + num_steps):
            begin = time.perf_counter()
            self.run.log_metrics({"train/loss": 1 / (step + 1), "train/accuracy": step / 10_000}, step)
            self.durations_s.append(time.perf_counter() - begin)
        self.num_steps += num_steps

    @property
    def is_prompt(self) -> bool:
        """Whether 99 of 100 calls took less than 50 ms: a machine that is shared may hold up the hundredth."""
        return sorted(self.durations_s)[len(self.durations_s) * 99 // 100] < 0.05


def steps_kept(server: MlflowServer, run: Run, key: str = "train/loss") -> list[int]:
    """Read the steps of a metric, in the order in which they arrived, from the database: the server may be gone."""
    query = "select step from metrics where run_uuid = ? and key = ? order by rowid"
    with closing(sqlite3.connect(server.database_uri.removeprefix("sqlite:///"))) as database:
        return [step for (step,) in database.execute(query, (run.run_id, key))]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_hung_server_holds_up_nothing(server: MlflowServer, start: Callable[..., Run]) -> None:
    run = start()
    loop = Loop(run)
    server.pause()
    try:
        loop.go_on(500)
    finally:
        server.resume()
    assert loop.is_prompt
    assert run.end("FINISHED") is None
    assert steps_kept(server, run) == list(range(500))


def test_a_backlog_arrives_whole_once_and_in_order_when_the_killed_server_returns(
    server: MlflowServer,
    start: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(outbox, "LOST_PATIENCE_S", 60)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    run = start(system_metrics=True)
    loop = Loop(run)
    loop.go_on(2000)
    wait_until(lambda: steps_kept(server, run), 10, "the first metrics")
    server.kill()
    loop.go_on(500)
    run.log_params({"seed": 7})
    run.set_tags({"qualified": "true"})
    run.log_text("lr: 0.1\n", "config/resolved.yaml")
    (tmp_path / "confusion_matrix.png").write_bytes(b"png")
    run.log_artifact(tmp_path / "confusion_matrix.png", "evaluation")
    printed: list[str] = []

    def is_noticed() -> bool:
        printed.append(capfd.readouterr().out)
        return "is lost (" in "".join(printed)

    wait_until(is_noticed, 10, "the outage to be noticed")
    num_sampled = (tmp_path / "buffer" / "metrics.jsonl").read_text().count("system/cpu")

    restart = threading.Thread(target=server.start)
    restart.start()
    sentence = run.end("FAILED", "out of memory")
    restart.join()

    assert sentence is None
    assert not (tmp_path / "buffer" / "unsent.jsonl").exists()
    assert loop.is_prompt
    assert steps_kept(server, run) == list(range(2500))
    assert steps_kept(server, run, "train/accuracy") == list(range(2500))
    assert len(steps_kept(server, run, "system/cpu_utilization_percentage")) >= num_sampled
    found = MlflowClient(server.uri).get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.params == {"seed": "7"}
    assert {"qualified": "true", "status_reason": "out of memory"}.items() <= found.data.tags.items()
    for folder, file in [("config", "config/resolved.yaml"), ("evaluation", "evaluation/confusion_matrix.png")]:
        assert [each.path for each in MlflowClient(server.uri).list_artifacts(run.run_id, folder)] == [file]
    rest = capfd.readouterr()
    assert rest.err == ""
    assert [line.partition(" (")[0] for line in "".join([*printed, rest.out]).splitlines()] == [
        f"MLflow at {server.uri} is lost",
        f"Waiting up to 60 s for MLflow at {server.uri}.",
        f"MLflow at {server.uri} is back; what was kept is being sent.",
    ]


def test_what_a_server_that_never_returns_did_not_take_is_kept_in_a_file_that_the_last_word_names(
    server: MlflowServer,
    start: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(outbox, "LOST_PATIENCE_S", 1)
    run = start()
    loop = Loop(run)
    loop.go_on(50)
    # In the database is not enough: a batch that the server was killed before acknowledging counts as unsent.
    wait_until(lambda: not run._outbox.unsent, 10, "the first metrics")
    server.kill()
    loop.go_on(500)
    run.log_params({"seed": 7})
    run.log_text("lr: 0.1\n", "config/resolved.yaml")
    run.log_artifact(tmp_path / "checkpoint.ckpt")
    begin = time.monotonic()
    sentence = run.end("KILLED", "SIGTERM")
    assert time.monotonic() - begin < 5
    assert loop.is_prompt

    unsent = tmp_path / "buffer" / "unsent.jsonl"
    assert sentence is not None
    assert sentence.endswith(f"Kept in {unsent}")
    assert f"1000 metrics, 1 param, 1 text, 1 artifact, 1 tag, 1 status of run {run.run_id} (Connection" in sentence
    assert steps_kept(server, run) == list(range(50))
    logged = rows(tmp_path / "buffer" / "metrics.jsonl")
    kept = rows(unsent)
    assert len(logged) == 2 * 550
    assert kept[:-5] == logged[2 * 50 :]
    assert [(row["kind"], row["key"], row["value"]) for row in kept[-5:]] == [
        ("param", "seed", "7"),
        ("text", "config/resolved.yaml", "lr: 0.1\n"),
        ("artifact", "", str(tmp_path / "checkpoint.ckpt")),
        ("tag", "status_reason", "SIGTERM"),
        ("status", "status", "KILLED"),
    ]
    printed = capfd.readouterr()
    assert printed.out.startswith(f"MLflow at {server.uri} is lost (ConnectionRefusedError")
    assert printed.err == ""

    with pytest.raises(UserError, match=r"tracking\.uri=.*ConnectionRefusedError"):
        start()
    with pytest.raises(UserError, match=r"tracking\.uri=.*ConnectionRefusedError"):
        Run.start(server.uri, "1", name="run", tags={}, buffer_dir=tmp_path / "never")
    assert not (tmp_path / "never").exists()
