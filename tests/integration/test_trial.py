from __future__ import annotations

import pytest
from mlflow import MlflowClient

from flatfix.config.exit_codes import ExitCode
from tests.integration.conftest import Train


def test_a_trial_tells_of_its_run_of_every_epoch_and_of_its_objectives(run_tiny: Train, client: MlflowClient) -> None:
    parent = client.create_run("0").info.run_id
    began: list[str] = []
    reports: list[tuple[int, float]] = []

    def report(epochs: int, value: float) -> bool:
        reports.append((epochs, value))
        return False

    result = run_tiny(
        "sweep.name=monday",
        "sweep.trial=7",
        f"sweep.parent_run_id={parent}",
        "sweep.objectives=[f1,latency_ms]",
        "monitor=auroc",
        "trainer.max_epochs=3",
        report=report,
        began=began.append,
    )
    assert began == [result.run_id]
    assert not result.is_pruned
    logged = client.get_metric_history(result.run_id, "val/f1")  # the first objective, whatever is monitored
    assert reports == [(each.step + 1, each.value) for each in logged]

    run = client.get_run(result.run_id)
    assert (run.data.tags["sweep"], run.data.tags["trial"]) == ("monday", "7")
    assert client.get_parent_run(result.run_id).info.run_id == parent
    f1 = {each.step: each.value for each in client.get_metric_history(result.run_id, "val/f1")}
    assert result.objectives == {"f1": f1[result.best_epoch], "latency_ms": run.data.metrics["best/latency_ms"]}
    assert result.objectives["latency_ms"] > 0


def test_a_pruned_run_ends_cleanly_where_it_is_told_to(
    run_tiny: Train, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_tiny("trainer.max_epochs=5", report=lambda epochs, value: epochs == 2)
    assert result.is_pruned
    assert result.exit_code is ExitCode.DONE
    assert result.num_epochs == 2
    assert result.package is None
    assert not result.objectives
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    tags = {name: run.data.tags[name] for name in ("pruned", "pruned_epoch", "qualified", "qualification")}
    assert tags == {
        "pruned": "true",
        "pruned_epoch": "2",
        "qualified": "false",
        "qualification": "pruned after epoch 2",
    }
    assert len(client.get_metric_history(result.run_id, "train/loss")) == 2
    assert not client.list_artifacts(result.run_id, "evaluation")
    assert "pruned after epoch 2: accuracy" in capsys.readouterr().out


def test_a_report_that_fails_fails_the_run(run_tiny: Train, client: MlflowClient) -> None:
    def report(epochs: int, value: float) -> bool:
        raise RuntimeError("the study is gone")

    began: list[str] = []
    with pytest.raises(RuntimeError, match="the study is gone"):
        run_tiny(report=report, began=began.append)
    assert client.get_run(began[0]).info.status == "FAILED"
