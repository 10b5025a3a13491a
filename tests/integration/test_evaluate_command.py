from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from flatfix.config.exit_codes import ExitCode
from flatfix.config.options import EVALUATE
from flatfix.data.pull import pull
from flatfix.data.version import DatasetVersion
from flatfix.errors import UserError
from flatfix.evaluation.metrics import METRICS
from flatfix.registry.evaluation import evaluation_of, run
from flatfix.registry.packages import fetch_package
from flatfix.registry.versions import Version, find
from tests.helpers.compose import ROOT, compose
from tests.helpers.images import class_folders
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.shades import finished_run, publish_shades, registered

NUM_TEST = 120
FILES = {
    "predictions.csv",
    "predictions.parquet",
    "sample_predictions.json",
    "metrics.json",
    "class_metrics.csv",
    "confusion_matrix.png",
    "precision_recall.png",
    "report.html",
}

Evaluate = Callable[..., tuple[ExitCode, str]]


@dataclass(frozen=True)
class Place:
    """Hold two registered versions, of which none was promoted, and the dataset that they were trained on."""

    folder: Path
    uri: str
    dataset: DatasetVersion
    versions: tuple[Version, Version]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def number_of_evaluations(self) -> int:
        experiment = self.client.get_experiment_by_name("flatfix")
        assert experiment is not None
        return len(self.client.search_runs([experiment.experiment_id], "tags.kind = 'evaluation'"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    uri = fresh_database(folder)
    dataset = publish_shades(folder / "store", num_pictures=300)
    first, second = (registered(uri, finished_run(uri, dataset, noise, seed)) for noise, seed in ((0, 0), (1, 1)))
    return Place(folder, uri, dataset, (first, second))


@pytest.fixture
def evaluate(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Do what `python evaluate.py <words>` does, and return how it ended and what it said."""

    def run_it(*words: str) -> tuple[ExitCode, str]:
        capsys.readouterr()
        code = run(compose("evaluate", EVALUATE, place.folder, f"outdir={tmp_path / 'out'}", *words))
        said = capsys.readouterr()
        return code, said.out + said.err

    return run_it


@pytest.fixture
def alias(place: Place):
    """Point aliases at versions, for a test."""
    given: list[str] = []

    def point(name: str, number: int) -> None:
        place.client.set_registered_model_alias("shades", name, str(number))
        given.append(name)

    yield point
    for name in given:
        place.client.delete_registered_model_alias("shades", name)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_version_is_evaluated_as_it_was_when_it_was_trained_and_all_of_it_is_kept(
    place: Place, evaluate: Evaluate, tmp_path: Path
) -> None:
    version = place.versions[0]
    code, said = evaluate("version=1")
    assert code is ExitCode.DONE
    assert "model: shades version 1 (cnn, 32 px)" in said and "pictures: shades v1 test, 120" in said
    lines = said.splitlines()
    shown = next(number for number, line in enumerate(lines) if line.split() == list(METRICS))
    assert [line.split()[0] for line in lines[shown + 1 : shown + 4]] == ["value", "95", "95"]

    run_id = said.split("run: ")[1].split()[0]
    logged = place.client.get_run(run_id)
    metrics = logged.data.metrics
    for metric, value in version.test.items():
        assert metrics[metric] == pytest.approx(value, abs=1e-5)
        assert metrics[f"{metric}_low"] < value < metrics[f"{metric}_high"]
    assert metrics["tested_samples"] == NUM_TEST
    assert logged.info.status == "FINISHED"
    assert logged.data.tags.items() >= {
        ("registered_model", "shades"),
        ("model_version", "1"),
        ("dataset_digest", place.dataset.manifest.digest),
        ("split", "test"),
    }
    assert {file.path for file in place.client.list_artifacts(run_id)} > FILES
    tags = place.client.get_model_version("shades", "1").tags
    assert tags[f"evaluation.{place.dataset.manifest.digest[:16]}.test"] == run_id

    rows = rows_of(tmp_path / "out")
    assert len(rows) == NUM_TEST
    columns = ["path", "label", "prediction", "confidence", "probability_ok", "probability_defective"]
    assert list(rows[0]) == columns
    num_right = sum(row["label"] == row["prediction"] for row in rows)
    assert num_right / NUM_TEST == pytest.approx(metrics["accuracy"])


@pytest.mark.usefixtures("undrawn")
def test_only_a_whole_split_counts_as_an_evaluation_of_the_version(place: Place, evaluate: Evaluate) -> None:
    before = place.number_of_evaluations()
    _, said = evaluate("version=2", "limit=30", "seed=4", "tracking.experiment=looks")
    run_id = said.split("run: ")[1].split()[0]
    logged = place.client.get_run(run_id)
    assert logged.data.metrics["tested_samples"] == 30
    assert logged.data.tags["limit"] == "30 of 120, seed 4"
    assert not [key for key in place.client.get_model_version("shades", "2").tags if key.startswith("evaluation.")]
    assert place.number_of_evaluations() == before


def test_what_cannot_be_read_is_named_and_the_rest_is_evaluated(evaluate: Evaluate, tmp_path: Path) -> None:
    class_folders(tmp_path / "new", ["ok"], num_pictures=4)
    (tmp_path / "new/ok/001.png").write_bytes(b"nothing")
    code, said = evaluate("version=1", f"data={tmp_path}/new", "log_mlflow=false")
    assert code is ExitCode.NO
    assert f"1 of 4 pictures cannot be read:\n  {tmp_path}/new/ok/001.png: not a picture" in said
    assert [Path(row["path"]).name for row in rows_of(tmp_path / "out")] == ["000.png", "002.png", "003.png"]
    assert "1 of 4, which cannot be read" in (tmp_path / "out/report.html").read_text()
    for picture in (tmp_path / "new/ok").iterdir():
        picture.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"^data=.*new: none of 4 pictures can be read:"):
        evaluate("version=1", f"data={tmp_path}/new", "log_mlflow=false")


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_is_run_once_and_again_when_its_table_is_lost(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = place.client
    version = find(client, "shades", "2")
    package = fetch_package(client, version, tmp_path)
    tag = f"evaluation.{place.dataset.manifest.digest[:16]}.val"

    def ask():
        return evaluation_of(
            place.uri,
            version,  # its tags are those of before
            package,
            place.dataset,
            "val",
            experiment="flatfix",
            outdir=tmp_path / "out",
            cache_dir=tmp_path / "cache",
        )

    before = place.number_of_evaluations()
    first = ask()
    assert place.number_of_evaluations() == before + 1
    second = ask()
    assert place.number_of_evaluations() == before + 1
    assert first.ids == second.ids and len(first.ids) == 60
    for one, other in (
        (first.calibrated, second.calibrated),
        (first.predictions, second.predictions),
        (first.labels, second.labels),
    ):
        np.testing.assert_array_equal(one, other)
    assert first.decision.positive == 1 and first.decision.threshold == package.card.decision.threshold
    assert np.mean(first.is_right) == pytest.approx(version.validation["accuracy"])

    run_id = client.get_model_version("shades", "2").tags[tag]
    (Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "predictions.parquet").unlink()
    capsys.readouterr()
    np.testing.assert_array_equal(ask().calibrated, first.calibrated)
    assert f"the evaluation in run {run_id} cannot be read" in capsys.readouterr().out
    assert client.get_model_version("shades", "2").tags[tag] != run_id


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["version=3"], r"version=3: .*versions 1, 2"),
        (["registry.name=shade"], r"registry\.name=shade: .*Did you mean 'shades'"),
        (["dataset.version=v2"], r"dataset\.name=shades dataset\.version=v2: not in the store"),
        (["dataset.name=shade"], r"dataset\.name=shade: no version of it"),
        (["data=gone"], "data=gone: no such folder or table"),
        (["precision=bf16"], r"precision=bf16"),
    ],
)
def test_what_cannot_work_is_refused_and_logs_nothing(
    place: Place, evaluate: Evaluate, tmp_path: Path, words: list[str], message: str
) -> None:
    before = place.number_of_evaluations()
    with pytest.raises(UserError, match=message):
        evaluate(*words)
    assert place.number_of_evaluations() == before
    assert not (tmp_path / "out").exists()


def test_a_class_that_the_model_does_not_know_is_named(evaluate: Evaluate, tmp_path: Path) -> None:
    class_folders(tmp_path / "new", ["ok", "scratch"], num_pictures=1)
    with pytest.raises(UserError, match=r"data=.*new: has pictures of scratch, which the model does not know"):
        evaluate("version=1", f"data={tmp_path}/new")


def command(folder: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run an entry point, and say at the end which of the large packages it imported."""
    code = f"""
import runpy, sys
sys.argv = {[script, *words]!r}
try:
    runpy.run_path({str(ROOT / script)!r}, run_name="__main__")
finally:
    print("imported:", *sorted({{"torch", "mlflow", "onnxruntime"}} & sys.modules.keys()))
"""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.usefixtures("undrawn")
def test_the_same_pictures_have_the_same_answers_wherever_they_lie_and_whoever_asks_without_torch(
    place: Place, evaluate: Evaluate, alias: Callable[[str, int], None], tmp_path: Path
) -> None:
    alias("production", 1)
    pull(place.dataset, tmp_path / "pulled")
    common = [f"paths.output={place.folder}", "runtime=onnxruntime"]
    words = [f"data={tmp_path}/pulled/test", "outdir=folder", "experiment=a look", "run_name=now"]
    evaluated = command(tmp_path, "evaluate.py", *common, *words)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert evaluated.stdout.splitlines()[-1] == "imported: mlflow onnxruntime"
    experiment = place.client.get_experiment_by_name("a look")
    assert experiment is not None
    (logged,) = place.client.search_runs([experiment.experiment_id])
    assert logged.info.run_name == "now"
    answers = {row["path"]: (row["prediction"], float(row["confidence"])) for row in rows_of(tmp_path / "folder")}
    assert len(answers) == NUM_TEST

    predicted = command(tmp_path, "predict.py", *common, "alias=production", f"input={tmp_path}/pulled/test")
    assert (predicted.returncode, predicted.stderr) == (0, "")
    assert predicted.stdout.splitlines()[-1] == "imported: mlflow onnxruntime"
    assert "model: alias=production (cnn as shades version 1, onnxruntime fp32, 2 classes, 32 px" in predicted.stdout
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert {row["path"]: (row["class"], pytest.approx(row["probability"], abs=1e-6)) for row in rows} == answers

    with (tmp_path / "pulled/labels.csv").open("w", encoding="utf-8") as file:
        file.write("path,label\n")
        for row in rows_of(tmp_path / "folder")[::-1]:
            file.write(f"{Path(row['path']).relative_to(tmp_path / 'pulled')},{row['label']}\n")
    evaluate(f"data={tmp_path}/pulled/labels.csv", "batch_size=7", "log_mlflow=false")
    of_table = [(str(tmp_path / "pulled" / row["path"]), row["prediction"]) for row in rows_of(tmp_path / "out")]
    assert of_table == [(path, label) for path, (label, _) in answers.items()][::-1]

    evaluate("log_mlflow=false")
    of_dataset = {row["path"].rpartition("/")[2]: row["prediction"] for row in rows_of(tmp_path / "out")}
    assert of_dataset == {Path(path).stem: label for path, (label, _) in answers.items()}


def test_the_confusion_matrix_of_any_table_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "any.csv").write_text("label,prediction\ncat,cat\ncat,dog\ndog,dog\n", encoding="utf-8")
    drawn = command(tmp_path, "evaluate.py", "plot=only", "csv=any.csv", "outdir=out")
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert (tmp_path / "out/confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["confusion_matrix.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["any.csv", "out"]
