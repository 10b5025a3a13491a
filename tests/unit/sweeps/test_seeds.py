from __future__ import annotations

import csv
from pathlib import Path

import pytest

from flatfix.config.exit_codes import ExitCode
from flatfix.evaluation.metrics import METRICS
from flatfix.sweeps.seeds import Spread, combinations, write_csv
from flatfix.training.result import RunResult


def job(accuracy: float, *overrides: str) -> tuple[list[str], RunResult]:
    metrics = dict.fromkeys(METRICS, accuracy)
    return ["paths.output=out", *overrides], RunResult(
        "run", "folder", "FINISHED", ExitCode.DONE, validation=metrics, test={name: accuracy / 2 for name in metrics}
    )


JOBS = [job(0.8, "model=cnn", "seed=1"), job(0.5, "model=resnet18", "seed=1"), job(0.9, "model=cnn", "seed=2")]


def test_jobs_that_differ_by_their_seed_are_one_row_with_mean_and_sample_deviation() -> None:
    cnn, resnet = combinations(JOBS)
    assert (cnn.overrides, cnn.num_runs) == ("model=cnn", 2)
    assert cnn.validation["accuracy"].mean == pytest.approx(0.85)
    assert cnn.validation["accuracy"].deviation == pytest.approx(0.1 / 2**0.5)
    assert cnn.test["f1"].mean == pytest.approx(0.425)
    assert (resnet.num_runs, resnet.validation["accuracy"]) == (1, Spread(0.5, None))
    assert str(cnn.validation["accuracy"]) == "0.8500 ± 0.0707"
    assert str(resnet.validation["accuracy"]) == "0.5000"


def test_seeds_alone_make_one_row_and_one_job_keeps_what_it_was_told() -> None:
    assert [row.num_runs for row in combinations([job(0.8, "seed=1"), job(0.9, "seed=2")])] == [2]
    (alone,) = combinations([job(0.8, "seed=1")])
    assert alone.num_runs == 1


def test_the_table_has_each_metric_of_both_splits(tmp_path: Path) -> None:
    write_csv(combinations(JOBS), tmp_path / "combinations.csv")
    first, second = csv.DictReader((tmp_path / "combinations.csv").open(encoding="utf-8"))
    assert first["combination"] == "model=cnn"
    assert float(first["val/accuracy mean"]) == pytest.approx(0.85)
    assert float(first["test/loss deviation"]) == pytest.approx(0.05 / 2**0.5)
    assert second["val/accuracy deviation"] == ""
