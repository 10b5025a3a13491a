from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flatfix.config.exit_codes import ExitCode
from flatfix.config.options import PROMOTE
from flatfix.errors import UserError
from flatfix.registry.command import run
from flatfix.registry.versions import aliases
from tests.helpers.compose import ROOT, compose
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.shades import finished_run, publish_shades, registered

pytestmark = pytest.mark.usefixtures("undrawn")

Promote = Callable[..., tuple[ExitCode, str]]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store, cache and MLflow for the tests of this module: each has a registered model of its own."""
    folder = tmp_path_factory.mktemp("output")
    fresh_database(folder)
    return folder


@pytest.fixture(scope="module")
def uri(output: Path) -> str:
    return f"sqlite:///{output / 'mlflow.db'}"


@pytest.fixture(scope="module")
def runs(output: Path, uri: str) -> dict[str, str]:
    """Three runs, by what their models are worth."""
    dataset = publish_shades(output / "store")
    return {name: finished_run(uri, dataset, noise) for name, noise in (("fair", 0.6), ("poor", 2), ("good", 0))}


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.originalname)


@pytest.fixture
def promote(output: Path, name: str, capsys: pytest.CaptureFixture[str]) -> Promote:
    """Do what `python promote.py <words>` does with this test's model; return how it ended and what it said."""

    def run_it(*words: str) -> tuple[ExitCode, str]:
        capsys.readouterr()
        code = run(compose("promote", PROMOTE, output, f"registry.name={name}", *words))
        return code, capsys.readouterr().out

    return run_it


def lines(text: str, pattern: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(pattern, line)]


def test_the_best_goes_live_a_worse_one_is_refused_a_better_one_goes_in_and_is_rolled_back(
    promote: Promote, uri: str, runs: dict[str, str], name: str
) -> None:
    client = MlflowClient(uri)

    def stages() -> dict[int, str]:
        return {int(each.version): each.tags["stage"] for each in client.search_model_versions(f"name='{name}'")}

    first, poor = registered(uri, runs["fair"], name), registered(uri, runs["poor"], name)

    code, said = promote("metric=F1_Score", "dry_run=true")
    assert code is ExitCode.DONE
    assert f"dry run, nothing is moved: version 1 of {name}: candidate -> staging" in said
    assert stages() == {1: "candidate", 2: "candidate"}

    code, said = promote("metric=F1")
    assert code is ExitCode.DONE
    table = said.splitlines()[1:4]
    assert [row.split()[0] for row in table] == ["version", "1", "2"]
    assert f"{first.validation['f1']:.4f}" in table[1]
    assert f"{poor.validation['f1']:.4f}" in table[2]
    assert f"version 1 of {name}: candidate -> staging, by validation f1 {first.validation['f1']:.4f}" in said
    assert stages() == {1: "staging", 2: "candidate"}

    code, said = promote("metric=F1", "stage=production")
    assert code is ExitCode.DONE
    assert lines(said, "not_worse +- +no version is live yet")
    assert f"live: models:/{name}@production" in said
    assert aliases(client, name) == {"production": 1}

    assert promote("version=2")[0] is ExitCode.DONE
    code, said = promote("metric=accuracy", "stage=production")
    assert code is ExitCode.NO
    (refusal,) = lines(said, "^  not_worse")
    accuracies = f"accuracy {poor.test['accuracy']:.4f} against {first.test['accuracy']:.4f}: significantly worse"
    assert re.search(rf"REFUSED +{accuracies}, by 0\.\d{{4}} \(90 % interval -0\.\d+ to -0\.\d+, p = ", refusal)
    assert "refused by not_worse, max_class_drop" in said
    assert aliases(client, name) == {"production": 1, "staging": 2}
    assert stages() == {1: "production", 2: "staging"}

    third = registered(uri, runs["good"], name)
    assert promote("metric=f1")[0] is ExitCode.DONE
    assert aliases(client, name) == {"production": 1, "staging": 3}
    code, said = promote("metric=f1", "stage=production")
    assert code is ExitCode.DONE
    assert lines(said, "^  not_worse +passed +f1")
    assert "version 1, which was live: production -> archived" in said
    assert aliases(client, name) == {"production": 3, "staging": 2, "previous": 1}
    assert stages() == {1: "archived", 2: "staging", 3: "production"}

    code, said = promote("action=info")
    assert code is ExitCode.DONE
    assert lines(said, f"^uri +models:/{name}@production$")
    assert lines(said, rf"^commit +{third.tags['git_commit']}$")
    assert lines(said, "^dataset +shades/v1, digest ")
    assert lines(said, r"^since +20\d\d-.* by \w+@")
    assert lines(said, "^2 +staging +@staging +cnn +shades/v1 ")

    code, said = promote("action=rollback", 'reason="it misses scratches"')
    assert code is ExitCode.DONE
    assert f"version 1 of {name}: archived -> production" in said
    assert aliases(client, name) == {"production": 1, "staging": 2}
    assert stages() == {1: "production", 2: "staging", 3: "archived"}

    code, said = promote("action=history")
    assert code is ExitCode.DONE
    moves = [line.split() for line in said.splitlines() if re.match(r"\d", line)]
    assert [(row[3], *row[4:7]) for row in moves] == [
        ("promote", "1", "candidate", "staging"),
        ("promote", "1", "staging", "production"),
        ("promote", "2", "candidate", "staging"),
        ("promote", "3", "candidate", "staging"),
        ("promote", "3", "staging", "production"),
        ("rollback", "1", "archived", "production"),
    ]
    assert 'move 6: "it misses scratches"' in said
    assert len(lines(said, "^  not_worse")) == 2

    code, said = promote("action=compare", "a=production", "b=2")
    assert code is ExitCode.DONE
    assert lines(said, "^metric +val 1 +val 2 +test 1 +test 2$")
    assert "on the same 240 test pictures of shades/v1; differences above 0 are for version 2:" in said
    assert lines(
        said, rf"^accuracy +{first.test['accuracy']:.4f} +{poor.test['accuracy']:.4f} +-0\.\d{{4}} .* exact McNemar"
    )


def test_a_run_is_registered_once_and_one_that_did_not_qualify_says_why(
    promote: Promote, uri: str, runs: dict[str, str], name: str
) -> None:
    words = ["action=register", f"run_id={runs['good']}"]
    assert promote(*words) == (ExitCode.DONE, f"registered as version 1 of {name}, candidate\n")
    assert promote(*words) == (ExitCode.DONE, f"was registered before: version 1 of {name}, candidate\n")
    client = MlflowClient(uri)
    tags = {"qualified": "false", "qualification": "f1 0.71 misses min_f1 0.8 by 0.09"}
    run_id = client.create_run("0", tags=tags).info.run_id
    client.set_terminated(run_id)
    code, said = promote("action=register", f"run_id={run_id}")
    assert code is ExitCode.NO
    assert "f1 0.71 misses min_f1 0.8 by 0.09" in said


def test_force_passes_over_staging_and_gates_and_is_told(
    promote: Promote, uri: str, runs: dict[str, str], name: str
) -> None:
    registered(uri, runs["good"], name)
    with pytest.raises(UserError, match="the way to production goes through staging"):
        promote("version=1", "stage=production")
    code, said = promote("version=1", "stage=production", "force=true", 'reason="the line stands still"')
    assert code is ExitCode.DONE
    assert f"version 1 of {name}: candidate -> production" in said
    assert 'move 1: forced, past staging and the gates "the line stands still"' in promote("action=history")[1]


def test_what_a_crash_left_is_repaired_and_said(promote: Promote, uri: str, runs: dict[str, str], name: str) -> None:
    registered(uri, runs["good"], name)
    promote("metric=f1")
    MlflowClient(uri).delete_registered_model_alias(name, "staging")
    assert "repaired: @staging: none → 1" in promote("action=info")[1]
    assert "repaired: " not in promote("action=info")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "metric: name the validation metric that chooses"),
        (["metric=f1", "version=1"], "metric=f1: version=1 is chosen already, and nothing is compared"),
        (["version=1", "dataset.version=v1"], "dataset.version=v1: version=1 is chosen already"),
        (["version=1", "force=true"], "force=true: no gate stands before staging"),
        (["metric=f1", "force=true", "stage=production"], "version: force=true needs a value"),
        (["version=1", "force=true", "stage=production"], "reason: force=true needs a value"),
        (["action=register"], "run_id: action=register needs a value"),
        (["action=compare", "a=1"], "b: action=compare needs a value"),
        (["action=info", "dry_run=true"], "dry_run=true: read only by action=promote and action=rollback"),
        (["action=history", "metric=f1"], "metric=f1: read only by action=promote"),
        (["action=rollback", "stage=production"], "stage=production: read only by action=promote"),
        (["action=info"], "registry.name=test_wrong_usage_names_the_option: no such registered model"),
    ],
)
def test_wrong_usage_names_the_option(promote: Promote, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        promote(*words)
    assert message in str(error.value)


def test_the_command_ends_with_0_1_and_2(
    uri: str, runs: dict[str, str], name: str, output: Path, tmp_path: Path
) -> None:
    registered(uri, runs["good"], name)
    script, common = str(ROOT / "promote.py"), [f"paths.output={output}", f"registry.name={name}"]
    # One process, as its imports take longest; how the last command ends is how it ends.
    code = f"""
import runpy, sys

def command(*words):
    sys.argv = [{script!r}, *{common!r}, *words]
    runpy.run_path({script!r}, run_name="__main__")

for word in ("version=9", "metric=F1"):
    try:
        command(word)
    except SystemExit as ended:
        print(word, "ends with", int(ended.code))
command("metric=F1", "stage=production", "gates.max_package_megabytes=0.01")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert lines(done.stdout, "ends with") == ["version=9 ends with 2", "metric=F1 ends with 0"]
    assert done.stderr == (
        "error: version=9: no such version. There are 1 (candidate).\nSee --help for every option.\n"
    )
    assert "refused by max_package_megabytes" in done.stdout
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []
