from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from flatfix.config.exit_codes import ExitCode
from flatfix.errors import UserError
from flatfix.evaluation import predictions
from flatfix.evaluation.calibration import expected_calibration_error
from flatfix.models.classifier import load_checkpoint
from flatfix.training.module import TrainingModule
from flatfix.training.result import RunResult
from flatfix.training.run import train
from tests.helpers.compose import CONF, TINY, compose_train
from tests.helpers.mlflow_db import fresh_database

Train = Callable[..., RunResult]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


# Every choice of every part of a recipe comes at least once; the tires have no soft labels.
RECIPES = list(
    islice(
        zip(
            cycle(choices("augment")),
            cycle(choices("optimizer")),
            cycle(choices("scheduler")),
            cycle(choice for choice in choices("loss") if choice != "soft_targets"),
            strict=False,
        ),
        max(map(len, map(choices, ("augment", "optimizer", "scheduler")))),
    )
)


@pytest.mark.parametrize(("augment", "optimizer", "scheduler", "loss"), RECIPES)
def test_every_choice_of_a_recipe_trains(
    run_tiny: Train, augment: str, optimizer: str, scheduler: str, loss: str
) -> None:
    named = ["optimizer.opt=lamb"] if optimizer == "timm" else []
    recipe = [f"augment={augment}", f"optimizer={optimizer}", f"scheduler={scheduler}", f"loss={loss}"]
    result = run_tiny(*recipe, *named, "loss.class_weights=auto")
    assert (result.status, result.exit_code, result.num_epochs) == ("FINISHED", ExitCode.DONE, 2)


def test_the_report_and_all_its_figures_are_in_mlflow(run_tiny: Train, client: MlflowClient) -> None:
    result = run_tiny("augment=trivial", "report=true")
    folder = Path(result.folder) / "evaluation"
    logged = {item.path for item in client.list_artifacts(result.run_id, "evaluation")}
    assert logged == {f"evaluation/{path.name}" for path in folder.iterdir()}
    names = {"report.html", "validation.parquet", "confusion_matrix.png", "learning_curves.png", "augmented.png"}
    assert names <= {path.name for path in folder.iterdir()}
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert result.run_id in text
    assert "tires v1" in text


def test_the_decision_is_chosen_on_validation_and_travels_with_the_checkpoint(run_tiny: Train) -> None:
    result = run_tiny("decision.recall_at_least=0.95", "decision.review_fraction=0.2")
    assert result.validation["recall"] >= 0.95
    decision = load_checkpoint(Path(str(result.checkpoint))).spec.decision
    assert decision.threshold != 0.5
    assert decision.review and decision.review[0] <= decision.threshold <= decision.review[1]

    table = predictions.read(Path(result.folder) / "evaluation" / "predictions.parquet")
    decided = decision.predict(table.probabilities)
    assert np.mean(decided == table.labels) == pytest.approx(result.test["accuracy"])
    validation = predictions.read(Path(result.folder) / "evaluation" / "validation.parquet")
    assert 0.1 <= decision.needs_review(validation.probabilities).mean() <= 0.3


def test_without_calibration_the_probabilities_stay_those_of_the_softmax(run_tiny: Train, client: MlflowClient) -> None:
    result = run_tiny("decision.calibrate=false")
    decision = load_checkpoint(Path(str(result.checkpoint))).spec.decision
    assert (decision.temperature, decision.threshold) == (1.0, 0.5)
    calibrated = run_tiny(name="calibrated")
    assert calibrated.validation["loss"] <= result.validation["loss"]
    table = predictions.read(Path(result.folder) / "evaluation" / "predictions.parquet")
    logged = client.get_run(result.run_id).data.metrics["test/calibration_error"]
    assert logged == pytest.approx(expected_calibration_error(table.labels, table.probabilities, positive=1))


def test_folds_divide_train_and_validation_and_leave_the_test_alone(run_tiny: Train) -> None:
    tables = []
    for fold in (0, 1, 2):
        result = run_tiny("dataset.num_folds=3", f"dataset.fold={fold}", name=f"fold{fold}")
        folder = Path(result.folder) / "evaluation"
        tables.append([predictions.read(folder / name) for name in ("validation.parquet", "predictions.parquet")])
    seen = [id for validation, _ in tables for id in validation.ids]
    assert len(seen) == len(set(seen)) == 160 - len(tables[0][1].ids)
    assert all(test.ids == tables[0][1].ids for _, test in tables)


def test_a_balanced_sampler_shows_every_class_equally_often(run_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    step = TrainingModule.training_step
    monkeypatch.setattr(
        TrainingModule,
        "training_step",
        lambda self, batch, index: (seen.extend(batch.labels), step(self, batch, index))[1],
    )
    source = ["dataset.name=few", "dataset.source.num_pictures=160", "dataset.sample_fraction=0.5"]
    run_tiny(*source, "dataset.sampler=balanced", "dataset.batch_size=8", "trainer.max_epochs=1")
    counts = np.bincount(seen)
    assert abs(counts[0] - counts[1]) <= 1
    with pytest.raises(UserError, match=r"loss\.class_weights=auto.*balanced|balanced.*loss\.class_weights"):
        run_tiny("dataset.sampler=balanced", "loss.class_weights=auto", name="twice")


def soft_table(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = ["path,label,target"]
    for number in range(60):
        level = number / 59
        pixels = np.clip(rng.normal(255 * level, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'bright' if level > 0.5 else 'dark'},{level} {1 - level}")
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "labels.csv"


def test_soft_targets_are_learnt_where_the_dataset_has_them_and_refused_elsewhere(
    run_tiny: Train, tmp_path: Path
) -> None:
    table = soft_table(tmp_path)
    source = [
        "dataset=csv",
        "dataset.name=soft",
        f"dataset.source.file={table}",
        f"dataset.source.root={tmp_path}",
        "dataset.positive_class=dark",
        "dataset.image_size=16",
    ]
    words = [word for word in TINY if not word.startswith("dataset")] + source
    output = tmp_path / "output"
    fresh_database(output)
    for loss in ("soft_targets", "cross_entropy"):
        recipe = ["dataset.batch_size=8", f"paths.run={tmp_path / loss}", f"loss={loss}"]
        result = train(compose_train(output, *words, *recipe))
        assert result.exit_code == ExitCode.DONE
    with pytest.raises(UserError, match=r"loss=soft_targets"):
        run_tiny("loss=soft_targets")


def test_grey_pictures_of_mixed_sizes_and_depths_train(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(48):
        label, height, width = ("dark", "light")[number % 2], 10 + number, 60 - number
        grey = rng.normal((80, 170)[number % 2], 10, (height, width)).clip(0, 255).astype(np.uint8)
        deep = grey.astype(np.uint16) * 257
        (tmp_path / "pictures" / label).mkdir(parents=True, exist_ok=True)
        kind = ("png", "tiff", "jpg")[number % 3]
        pixels = deep if kind != "jpg" and number % 4 < 2 else grey
        Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{number}.{kind}")
    output = tmp_path / "output"
    fresh_database(output)
    source = ["dataset=folder", "dataset.name=grey", f"dataset.source.root={tmp_path / 'pictures'}"]
    words = [word for word in TINY if not word.startswith(("dataset=", "dataset.source"))]
    result = train(compose_train(output, *source, "dataset.positive_class=dark", *words, "trainer.max_epochs=6"))
    assert result.test["accuracy"] >= 0.9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decision.recall_at_least=0.9", "decision.miss_cost=5"], r"decision\.recall_at_least.*decision\.miss_cost"),
        (["decision.recall_at_least=0.9", "decision.threshold=0.4"], r"decision\.threshold"),
        (["dataset.fold=1"], r"dataset\.num_folds"),
        (["dataset.fold=3", "dataset.num_folds=3"], r"dataset\.fold=3"),
        (["optimizer=timm", "optimizer.opt=lamp"], r"optimizer\.opt=lamp.*Did you mean 'lamb'"),
        (["loss.class_weights=[1.0,2.0,3.0]"], r"loss\.class_weights"),
    ],
)
def test_options_that_do_not_work_together_are_named(run_tiny: Train, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_tiny(*overrides)


def test_a_backbone_that_begins_with_what_it_sees_is_shown_training_pictures_but_keeps_loaded_weights(
    run_tiny: Train,
) -> None:
    def components(*words: str, name: str) -> tuple[torch.Tensor, str]:
        result = run_tiny("model=whitened_resnet", "trainer.max_epochs=1", *words, name=name)
        backbone = load_checkpoint(Path(str(result.checkpoint))).backbone
        return backbone.whitening.components.flatten(1), str(result.checkpoint)

    chosen, checkpoint = components(name="first")
    lengths = chosen.norm(dim=1)
    torch.testing.assert_close(chosen @ chosen.T, lengths.square().diag(), rtol=1e-3, atol=1e-3 * lengths.max() ** 2)
    others = ["dataset.name=others", "dataset.source.num_pictures=160", "dataset.source.seed=5"]
    again, _ = components(*others, f"model.weights={checkpoint}", name="again")
    assert torch.equal(again, chosen)
