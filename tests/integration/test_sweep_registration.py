from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flatfix.registry.sweep import register_best
from flatfix.registry.versions import list_versions
from tests.helpers.compose import ROOT, TINY
from tests.helpers.mlflow_db import fresh_database
from tests.integration.conftest import Train

QUALIFIES = "callbacks.qualify.min_accuracy=0.01"


def test_the_best_qualified_run_of_a_multirun_becomes_a_candidate_and_its_siblings_do_not(
    run_tiny: Train, client: MlflowClient
) -> None:
    words = ("registry.name=swept", "sweep.id=monday", QUALIFIES)
    runs = [run_tiny(*words, f"trainer.max_epochs={epochs}", name=f"{epochs}") for epochs in (1, 4)]
    unqualified = run_tiny("registry.name=swept", "sweep.id=monday", "callbacks.qualify.min_accuracy=1", name="no")
    assert not client.search_registered_models("name='swept'"), "a run of the multirun did not wait for its end"

    (registration,) = register_best(client.tracking_uri, "flatfix", sweep="monday", metric="loss", name="swept")
    made = registration.version
    assert made is not None

    best = min(runs, key=lambda run: run.validation["loss"])
    assert made.run_id == best.run_id != unqualified.run_id
    assert [version.run_id for version in list_versions(client, "swept")] == [best.run_id]


def test_of_a_multirun_over_two_datasets_the_best_run_of_each_becomes_a_candidate(
    run_tiny: Train, client: MlflowClient
) -> None:
    words = ("sweep.id=thursday", QUALIFIES)
    run_tiny(*words, name="one")
    run_tiny(*words, "dataset.name=other", "dataset.source.seed=1", name="two")
    made = register_best(client.tracking_uri, "flatfix", sweep="thursday", metric="accuracy", name=None)
    assert {each.version.name for each in made if each.version} == {"tires", "other"}


def test_a_multirun_without_a_qualified_run_registers_nothing_and_says_by_how_much_each_missed(
    run_tiny: Train, client: MlflowClient
) -> None:
    run_tiny("sweep.id=tuesday", "callbacks.qualify.max_loss=0.0001")
    (made,) = register_best(client.tracking_uri, "flatfix", sweep="tuesday", metric="loss", name="swept")
    assert made.version is None
    assert "none of the 1 finished runs of tuesday qualified" in made.describe()
    assert "misses max_loss 0.0001 by" in made.describe()


def test_every_run_of_a_multirun_becomes_a_candidate_where_all_are_asked_for(
    run_tiny: Train, client: MlflowClient
) -> None:
    run = run_tiny("registry.name=each", "sweep.id=wednesday", "sweep.register=all", QUALIFIES)
    assert [version.run_id for version in list_versions(client, "each")] == [run.run_id]


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "num_versions"), [("best", 1), ("all", 2), ("none", 0)])
def test_a_multirun_from_the_command_line_registers_what_it_is_asked_to(
    tmp_path: Path, choice: str, num_versions: int
) -> None:
    uri = fresh_database(tmp_path)
    command = [sys.executable, "train.py", "-m", f"paths.output={tmp_path}", *TINY, QUALIFIES, "seed=0,1"]
    subprocess.run([*command, f"sweep.register={choice}"], cwd=ROOT, check=True)
    versions = MlflowClient(uri).search_model_versions("name='tires'")
    assert len(versions) == num_versions
