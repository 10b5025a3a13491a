from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from mlflow import MlflowClient

from flatfix.training.module import TrainingModule
from flatfix.training.result import RunResult
from tests.helpers.compose import ROOT, TINY
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.mlflow_server import MlflowServer
from tests.helpers.reading import read_until

pytestmark = pytest.mark.slow

Train = Callable[..., RunResult]
History = dict[str, list[tuple[int, float]]]


def history(client: MlflowClient, run_id: str) -> History:
    """Read every value of every metric but those of the clock."""
    return {
        key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
        for key in client.get_run(run_id).data.metrics
        if key != "images_per_second" and not key.startswith("system/")
    }


def best_weights(result: RunResult) -> dict[str, torch.Tensor]:
    return torch.load(str(result.checkpoint), weights_only=True)["state_dict"]


def never(epochs: int, value: float) -> bool:
    return False


def terminating(epoch: int) -> Callable[[int, float], bool]:
    def report(epochs: int, value: float) -> bool:
        if epochs == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    return report


def fail(why: str) -> NoReturn:
    raise RuntimeError(why)


def failing(epochs: int, value: float) -> bool:
    if epochs == 2:
        raise RuntimeError("the disk is on fire")
    return False


@pytest.mark.parametrize(("report", "status"), [(terminating(1), "KILLED"), (failing, "FAILED")])
def test_a_run_that_ended_early_goes_on_as_the_same_run_and_ends_as_if_nothing_had_happened(
    run_tiny: Train, client: MlflowClient, report: Callable[[int, float], bool], status: str, tmp_path: Path
) -> None:
    words = ["trainer.max_epochs=3", f"tracking.experiment={status}", "augment=inspection"]
    undisturbed = run_tiny(*words, name="undisturbed", report=never)
    began: list[str] = []
    try:
        run_tiny(*words, name="first", report=report, began=began.append)
    except RuntimeError:
        pass
    (run_id,) = began
    before = client.get_run(run_id)
    assert before.info.status == status
    result = run_tiny(*words, "resume.from=auto", "tracking.run_name=other", name="second", report=never)
    assert (result.run_id, result.folder, result.num_epochs) == (run_id, str(tmp_path / "first"), 3)
    assert not (tmp_path / "second").exists()
    after = client.get_run(run_id)
    assert (after.info.status, after.info.run_name) == ("FINISHED", before.info.run_name)
    assert after.data.params == before.data.params
    assert after.data.tags["num_resumes"] == "1"
    assert {"resumable", "status_reason"}.isdisjoint(after.data.tags)
    assert history(client, run_id) == history(client, undisturbed.run_id)
    one, other = best_weights(result), best_weights(undisturbed)
    assert all(torch.equal(one[name], other[name]) for name in other)
    code = [item.path for item in client.list_artifacts(run_id, "code") if not item.path.endswith(".diff")]
    assert code == ["code/provenance.json", "code/resume-1"]
    again = run_tiny(*words, "resume.from=auto", name="third", report=never)
    assert again.run_id not in (run_id, undisturbed.run_id)


def test_a_run_that_died_before_its_first_state_begins_again_in_its_folder(
    run_tiny: Train, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="no power"):
        patched.setattr(TrainingModule, "training_step", lambda *_: fail("no power"))
        run_tiny("resume.from=auto", began=began.append)
    result = run_tiny("resume.from=auto")
    run = client.get_run(result.run_id)
    assert ([result.run_id], run.info.status, run.data.tags["num_resumes"]) == (began, "FINISHED", "1")
    assert [step for step, _ in history(client, result.run_id)["val/loss"]] == [0, 1]
    record = json.loads((Path(result.folder) / "run.json").read_text())
    assert record["origin"] == "cnn from random weights"


def test_a_run_that_died_before_it_was_registered_is_registered_and_not_trained_anew(
    run_tiny: Train, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["callbacks.qualify.min_accuracy=0.0", "resume.from=auto", "tracking.experiment=unregistered"]
    began: list[str] = []
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="no power"):
        patched.setattr("flatfix.training.run.register", lambda *_: fail("no power"))
        run_tiny(*words, name="first", began=began.append)
    (run_id,) = began
    assert client.search_model_versions(f"run_id='{run_id}'") == []
    again = run_tiny(*words, name="second")
    assert (again.run_id, again.status, again.exit_code) == (run_id, "FINISHED", 0)
    assert len(client.search_model_versions(f"run_id='{run_id}'")) == 1
    assert run_tiny(*words, "callbacks.qualify.min_accuracy=null", name="third").run_id != run_id


def test_a_branch_goes_on_from_the_state_in_a_run_of_its_own(
    run_tiny: Train, client: MlflowClient, tmp_path: Path
) -> None:
    first = run_tiny(name="first", report=never)
    files = {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()}
    words = [f"resume.from={first.run_id}", "resume.mode=branch", "trainer.max_epochs=4"]
    branch = run_tiny(*words, name="branch", report=never)
    assert (branch.folder, branch.num_epochs) == (str(tmp_path / "branch"), 4)
    assert branch.best_epoch in (2, 3)
    run = client.get_run(branch.run_id)
    assert run.data.tags["resumed_from"] == first.run_id
    assert run.data.params["trainer.max_epochs"] == "4"
    assert [step for step, _ in history(client, branch.run_id)["val/loss"]] == [2, 3]
    assert torch.load(str(branch.checkpoint), weights_only=True)["global_step"] == 6 * (branch.best_epoch + 1)
    assert {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()} == files


def test_fine_tuning_begins_with_the_weights_of_a_run_and_its_head(run_tiny: Train, client: MlflowClient) -> None:
    first = run_tiny(name="first", report=never)
    words = ["resume.mode=finetune", "optimizer=sgd", "optimizer.lr=1e-12", "optimizer.weight_decay=0", "seed=7"]
    tuned = run_tiny(f"resume.from={first.run_id}", *words, name="tuned", report=never)
    learnt = {name for name in best_weights(first) if name.endswith(("weight", "bias"))}
    one, other = best_weights(first), best_weights(tuned)
    assert "classifier.head.weight" in learnt
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in learnt)
    assert client.get_run(tuned.run_id).data.tags["resumed_from"] == first.run_id
    assert [step for step, _ in history(client, tuned.run_id)["val/loss"]] == [0, 1]


def test_a_head_alone_is_tuned_on_the_frozen_backbone_of_a_run_and_goes_on_too(run_tiny: Train) -> None:
    first = run_tiny(name="first", report=never)
    words = ["model.freeze=backbone", "seed=7"]
    began: list[str] = []
    tuning = [*words, f"resume.from={first.run_id}", "resume.mode=finetune"]
    run_tiny(*tuning, name="tuned", report=terminating(1), began=began.append)
    tuned = run_tiny(*words, f"resume.from={began[0]}", name="other", report=never)
    assert (tuned.run_id, tuned.num_epochs) == (began[0], 2)
    one, other = best_weights(first), best_weights(tuned)
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed == {"classifier.head.weight", "classifier.head.bias"}


class Command:
    """`train.py` in a process of its own, below one folder."""

    def __init__(self, folder: Path, uri: str, *words: str) -> None:
        self.words = [*TINY, f"paths.output={folder}", f"tracking.uri={uri}", *words]
        self.folder = folder

    def begin(self, *words: str) -> subprocess.Popen[str]:
        return self._begin([sys.executable, str(ROOT / "train.py"), *self.words, *words])

    def _begin(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def finish(self, *words: str) -> str:
        process = self.begin(*words)
        said, _ = process.communicate(timeout=180)
        assert process.returncode == 0, said
        return said

    def copy(self, line: str) -> str:
        """Run a command that was printed, as a person would who copies it."""
        python, *words = shlex.split(line)
        assert python == "python"
        process = self._begin([sys.executable, *words])
        said, _ = process.communicate(timeout=180)
        assert process.returncode == 0, said
        return said

    @property
    def runs(self) -> list[Path]:
        return sorted((self.folder / "runs").iterdir())


@pytest.fixture
def killed() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_the_command_that_an_interrupted_run_prints_goes_on_with_it(
    tmp_path: Path, killed: list[subprocess.Popen[str]]
) -> None:
    uri = fresh_database(tmp_path)
    command = Command(tmp_path, uri, "trainer.max_epochs=40", "+tracking.tags.note='two words'")
    process = command.begin()
    killed.append(process)
    read_until(process, "epoch  2/40")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    (folder,) = command.runs
    (line,) = (line for line in said.splitlines() if line.startswith("go on: "))
    overrides = (folder / ".hydra/overrides.yaml").read_bytes()
    rest = command.copy(line.removeprefix("go on: "))
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    assert f"resume: run {run_id} goes on from step" in rest
    assert "epoch  1/40" not in rest
    assert "epoch 40/40" in rest
    assert command.runs == [folder]
    assert (folder / ".hydra/overrides.yaml").read_bytes() == overrides
    client = MlflowClient(uri)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [step for step, _ in history(client, run_id)["val/loss"]] == list(range(40))


def test_a_run_that_is_killed_while_its_package_is_made_concludes_once(
    tmp_path: Path, killed: list[subprocess.Popen[str]]
) -> None:
    uri = fresh_database(tmp_path)
    command = Command(tmp_path, uri, "callbacks.qualify.min_accuracy=0.0", "resume.from=auto")
    process = command.begin()
    killed.append(process)
    read_until(process, "package: exporting")
    process.kill()
    process.wait()
    said = command.finish()
    assert "(epochs done: 2)" in said
    assert "epoch 1/2" not in said
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("flatfix").experiment_id])
    assert run.info.status == "FINISHED"
    for key, points in history(client, run.info.run_id).items():
        assert len(points) == len({step for step, _ in points}), key
        assert len(points) == (1 if key.startswith(("test/", "best/")) else 2), key
    assert "package/MLmodel" in [item.path for item in client.list_artifacts(run.info.run_id, "package")]
    assert len(command.runs) == 1


@pytest.mark.service
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_dies_in_an_outage_of_the_server_sends_the_rest_when_it_goes_on(
    tmp_path: Path, killed: list[subprocess.Popen[str]], number: signal.Signals
) -> None:
    with MlflowServer(tmp_path / "server") as server:
        command = Command(tmp_path, server.uri, "trainer.max_epochs=12", "resume.from=auto")
        process = command.begin("tracking.system_metrics=true")
        killed.append(process)
        read_until(process, "epoch  2/12")
        server.kill()
        read_until(process, "epoch  6/12")
        process.send_signal(number)
        process.communicate(timeout=60)
        (folder,) = command.runs
        assert (folder / "unsent.jsonl").exists() == (number == signal.SIGTERM)
        server.start()
        said = command.finish("tracking.system_metrics=true")
        assert "resume: run " in said
        client = MlflowClient(server.uri)
        (run,) = client.search_runs([client.get_experiment_by_name("flatfix").experiment_id])
        assert (run.info.status, run.data.tags["num_resumes"]) == ("FINISHED", "1")
        for key, points in history(client, run.info.run_id).items():
            steps = [step for step, _ in points]
            assert len(steps) == 1 if key.startswith(("test/", "best/")) else steps == list(range(12)), key
        sampled = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
        assert [point.step for point in sampled] == list(range(len(sampled)))
        assert not (folder / "unsent.jsonl").exists()
        assert "config/resolved.yaml" in [item.path for item in client.list_artifacts(run.info.run_id, "config")]


def test_a_multirun_does_not_go_on_with_one_run(tmp_path: Path) -> None:
    command = Command(tmp_path, fresh_database(tmp_path))
    process = command.begin("-m", "seed=1,2", "resume.from=auto")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "resume.from=auto: the jobs of a multirun are new runs." in said
