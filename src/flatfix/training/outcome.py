"""What a run leaves once it has trained: its judgement, its report, and the package of one that qualifies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from flatfix.config.exit_codes import ExitCode
from flatfix.config.text import to_yaml
from flatfix.console import say
from flatfix.data.cache import Examples
from flatfix.data.datamodule import generator
from flatfix.evaluation.metrics import METRICS
from flatfix.evaluation.report import Evaluation, report
from flatfix.inference.decision import Decision
from flatfix.models.export import Facts
from flatfix.registry.register import PACKAGE
from flatfix.tracking.connection import redact
from flatfix.tracking.run import Run
from flatfix.training import snapshots, summary
from flatfix.training.augment import Augment
from flatfix.training.callbacks import OverfitBelow
from flatfix.training.facts import card, without_password
from flatfix.training.fit import Fit, Prepared, Task, judge_best
from flatfix.training.objectives import objectives
from flatfix.training.packaging import package
from flatfix.training.result import RunResult

Config = Mapping[str, Any]
NUM_AUGMENTED = 24  # pictures in the report


@dataclass(frozen=True)
class Setting(Task):
    """What rank 0, which is most often the only one, has beside that."""

    run: Run
    git_commit: str


def conclude(setting: Setting, prepared: Prepared, fit: Fit) -> RunResult:
    """Say in MLflow, in the run's folder and on the screen what came of it."""
    if fit.callbacks.overfit:
        return _overfit_result(setting, fit, fit.callbacks.overfit)
    if fit.callbacks.is_pruned:
        return _pruned_result(setting, fit)
    return _report(setting, prepared, fit)


def _report(setting: Setting, prepared: Prepared, fit: Fit) -> RunResult:
    """Judge the checkpoint that counts, report, and make the package of a run that qualifies."""
    cfg, manifest, run, best = setting.cfg, setting.version.manifest, setting.run, fit.callbacks.best
    checkpoint = Path(best.checkpoint.best_model_path)
    decision, validation, test = judge_best(setting, fit)
    about = card(cfg, manifest, prepared.pictures, run.run_id, prepared.origin, fit.precision, best.epoch)
    evaluation = report(
        setting.folder / "evaluation",
        validation=validation,
        test=test,
        decision=decision,
        pictures=cast("NDArray[np.uint8]", prepared.pictures["test"].inputs),  # or what stands for them
        augmented=_augmented(setting.plan.augment, prepared.pictures["train"], cfg["seed"]),
        history=[{"epoch": epoch, **row} for epoch, row in run.history().items()],
        card=about,
        title=f"{manifest.name} {manifest.version}: {cfg['model']['name']}",
        monitor=cfg["monitor"],
        bounds=setting.plan.bounds,
        draw=cfg["report"],
    )
    _log_outcome(run, best.epoch, decision, evaluation, checkpoint)
    aims = objectives(
        cfg["sweep"]["objectives"],
        best.metrics,
        fit.module.classifier,
        cfg["dataset"]["image_size"],
        fit.trainer.strategy.root_device,
    )
    run.log_metrics({f"best/{name}": value for name, value in aims.items() if name not in METRICS}, best.epoch)
    package = _package(setting, prepared, checkpoint, decision.calibrate(validation.probabilities), evaluation)
    result = RunResult(
        run_id=run.run_id,
        folder=str(setting.folder),
        status="FINISHED",
        exit_code=ExitCode.DONE,
        checkpoint=str(checkpoint),
        best_epoch=best.epoch,
        num_epochs=fit.trainer.current_epoch,
        validation=evaluation.validation_metrics,
        test=evaluation.metrics,
        qualification=evaluation.qualification,
        package=str(package) if package else None,
        objectives=aims,
    )
    summary.print_result(result, evaluation, decision, redact(cfg["tracking"]["uri"]))
    return result


def _package(
    setting: Setting, prepared: Prepared, checkpoint: Path, calibrated: NDArray[np.float64], evaluation: Evaluation
) -> Path | None:
    """Make the package of a run that qualifies, and log it; return where it is.

    It takes longer than many a training: a multirun makes those that it registers, see `package_run`.
    """
    if not evaluation.qualification.is_qualified or _is_left_to_sweep(setting.cfg):
        return None
    manifest = setting.version.manifest
    facts = Facts(
        dataset={"name": manifest.name, "version": manifest.version, "digest": manifest.digest},
        validation=evaluation.validation_metrics,
        test=evaluation.metrics,
        qualification=evaluation.qualification.reason,
        run_id=setting.run.run_id,
        git_commit=setting.git_commit,
    )
    folder = setting.folder / PACKAGE
    package(
        checkpoint, folder, prepared.pictures, calibrated, facts=facts, config=to_yaml(without_password(setting.cfg))
    )
    setting.run.log_artifact(folder)
    return folder


def _is_left_to_sweep(cfg: Config) -> bool:
    """Tell whether the run is one of a multirun whose end chooses what is registered."""
    return bool(cfg["sweep"]["parent_run_id"]) and cfg["sweep"]["register"] != "all"


def _augmented(augment: Augment, examples: Examples, seed: int) -> NDArray[np.uint8] | None:
    """Return what training makes of some pictures `[K, H, W, 3]`, or None where it leaves them as they are."""
    if not augment.changes_pictures:
        return None
    images = torch.from_numpy(examples.inputs[:NUM_AUGMENTED])
    varied: NDArray[np.uint8] = augment(images, generator(seed)).numpy()
    return varied


def _log_outcome(
    run: Run,
    epoch: int,
    decision: Decision,
    evaluation: Evaluation,
    checkpoint: Path,
) -> None:
    qualification = evaluation.qualification
    run.log_metrics({f"test/{name}": value for name, value in evaluation.metrics.items()}, epoch)
    run.log_metrics({f"best/{name}": value for name, value in evaluation.validation_metrics.items()}, epoch)
    before, after = evaluation.calibration_error
    run.log_metrics({"test/calibration_error_before": before, "test/calibration_error": after}, epoch)
    run.log_metrics({"best/epoch": epoch, "best/temperature": decision.temperature}, epoch)
    if decision.positive is not None:
        run.log_metrics({"best/threshold": decision.threshold}, epoch)
    run.set_tags({"qualified": str(qualification.is_qualified).lower(), "qualification": qualification.reason})
    run.log_artifact(evaluation.predictions_path.parent)
    run.log_artifact(checkpoint, snapshots.CHECKPOINTS)


def _overfit_result(setting: Setting, fit: Fit, overfit: OverfitBelow) -> RunResult:
    run, num_steps = setting.run, fit.trainer.current_epoch
    verdict = f"loss {overfit.last_loss:.4f} on one batch after {num_steps} steps"
    run.set_tags({"qualified": "false", "qualification": f"one-batch test: {verdict}"})
    say(f"overfit: {'yes' if overfit.has_succeeded else 'no'}, {verdict} (asked for < {overfit.loss})")
    return RunResult(
        run_id=run.run_id,
        folder=str(setting.folder),
        status="FINISHED",
        exit_code=ExitCode.DONE if overfit.has_succeeded else ExitCode.NO,
        num_epochs=num_steps,
    )


def _pruned_result(setting: Setting, fit: Fit) -> RunResult:
    run, num_epochs = setting.run, fit.trainer.current_epoch
    run.set_tags(
        {
            "pruned": "true",
            "pruned_epoch": num_epochs,
            "qualified": "false",
            "qualification": f"pruned after epoch {num_epochs}",
        }
    )
    return RunResult(
        run_id=run.run_id,
        folder=str(setting.folder),
        status="FINISHED",
        exit_code=ExitCode.DONE,
        checkpoint=fit.callbacks.best.checkpoint.best_model_path,
        best_epoch=fit.callbacks.best.epoch,
        num_epochs=num_epochs,
        is_pruned=True,
    )
