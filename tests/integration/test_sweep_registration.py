from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flatfix.inference.package import open_package
from flatfix.registry.register import PACKAGE
from flatfix.registry.sweep import register_best
from flatfix.registry.versions import list_versions
from flatfix.training.packaging import package_run
from tests.helpers.compose import ROOT, TINY
from tests.helpers.mlflow_db import fresh_database
from tests.integration.conftest import Train

QUALIFIES = "callbacks.qualify.min_accuracy=0.01"


@pytest.mark.slow
def test_the_package_that_is_made_later_is_the_one_that_is_made_at_once(
    run_tiny: Train, client: MlflowClient, tmp_path: Path
) -> None:
    words = ("registry.register=false", "dataset.fold=1", "dataset.num_folds=4", "trainer.limit_batches=1")
    run = run_tiny(QUALIFIES, *words)
    at_once = open_package(Path(str(run.package))).card
    package_run(client.tracking_uri, run.run_id)
    later = open_package(Path(client.download_artifacts(run.run_id, PACKAGE, str(tmp_path)))).card
    assert later.created > at_once.created
    assert {**asdict(later), "created": ""} == {**asdict(at_once), "created": ""}
    assert client.get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_of_a_multirun_gets_its_package_when_it_is_registered(run_tiny: Train, client: MlflowClient) -> None:
    parent = client.create_run("0").info.run_id
    run = run_tiny(QUALIFIES, f"sweep.parent_run_id={parent}", "registry.name=swept")
    assert not client.search_registered_models("name='swept'"), "a run of the multirun did not wait for its end"
    assert not client.list_artifacts(run.run_id, PACKAGE), "a package was made that may never be registered"

    (made,) = register_best(
        client.tracking_uri, [run.run_id], "swept", lambda run_id: package_run(client.tracking_uri, run_id)
    )
    assert made.is_new
    assert made.version
    assert made.version.run_id == run.run_id


@pytest.mark.slow
def test_every_run_of_a_multirun_becomes_a_candidate_where_all_are_asked_for(
    run_tiny: Train, client: MlflowClient
) -> None:
    parent = client.create_run("0").info.run_id
    run = run_tiny("registry.name=each", f"sweep.parent_run_id={parent}", "sweep.register=all", QUALIFIES)
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
