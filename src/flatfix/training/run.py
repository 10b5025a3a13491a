"""Train a classifier: from a validated config to a tested checkpoint and its run in MLflow."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import SimpleProfiler
from numpy.typing import NDArray

from flatfix.config.exit_codes import ExitCode
from flatfix.config.text import to_yaml
from flatfix.console import complain, say
from flatfix.data.cache import Examples, counts
from flatfix.data.datamodule import ImageDataModule, generator
from flatfix.data.manifest import Manifest
from flatfix.data.publish import resolve
from flatfix.data.splits import SPLITS
from flatfix.data.store import Store
from flatfix.data.version import DatasetVersion, is_held, open_version
from flatfix.errors import UserError, one_of
from flatfix.evaluation import threshold
from flatfix.evaluation.metrics import METRICS
from flatfix.evaluation.predictions import Predictions
from flatfix.evaluation.report import Evaluation, report
from flatfix.inference.decision import Decision
from flatfix.models import classifier as classifiers
from flatfix.models.classifier import Classifier, load_head
from flatfix.models.export import Facts
from flatfix.models.registration import Initialised
from flatfix.registry.register import PACKAGE, PENDING, register
from flatfix.tracking.connection import preflight, redact
from flatfix.tracking.run import RESUMABLE, Run, Status
from flatfix.training import batch_size, resume, snapshots, summary
from flatfix.training import precision as precisions
from flatfix.training.augment import Augment, Identity
from flatfix.training.callbacks import OverfitBelow
from flatfix.training.devices import Place, check_gpus, find_place
from flatfix.training.facts import card, log_code, log_facts, optimizer_name, without_password
from flatfix.training.features import cached_features
from flatfix.training.interruption import Interrupted, interruptible
from flatfix.training.judge import judge
from flatfix.training.logger import RunLogger
from flatfix.training.losses import Loss, loss_of
from flatfix.training.module import TrainingModule
from flatfix.training.objectives import objectives
from flatfix.training.packaging import package
from flatfix.training.pictures import open_store_of, pictures_of
from flatfix.training.plan import Plan, make_plan
from flatfix.training.quiet import quieten
from flatfix.training.ranks import Ranks, following, leading
from flatfix.training.result import RunResult
from flatfix.training.resume import SWEEP, Record, Start
from flatfix.training.trainer import Callbacks, make_callbacks, make_trainer

Config = Mapping[str, Any]
Report = Callable[[int, float], bool]
NUM_AUGMENTED = 24  # pictures in the report
NUM_SEEN = 1024  # pictures that a backbone is shown before it trains


@dataclass(frozen=True)
class _Task:
    """What every process of a run has before it trains."""

    cfg: Config
    plan: Plan
    version: DatasetVersion
    positive: int | None
    start: Start
    ranks: Ranks

    @property
    def folder(self) -> Path:
        return Path(self.cfg["paths"]["run"])


@dataclass(frozen=True)
class _Setting(_Task):
    """What rank 0, which is most often the only one, has beside that."""

    run: Run
    git_commit: str


@dataclass(frozen=True)
class _Fit:
    """What a run has once it has trained."""

    trainer: L.Trainer
    module: TrainingModule
    callbacks: Callbacks
    pictures: Mapping[str, Examples]
    examples: Mapping[str, Examples]  # the pictures, or their features where the backbone is frozen
    origin: str  # of the weights
    precision: str


def train(cfg: Config, *, report: Report | None = None, began: Callable[[str], None] | None = None) -> RunResult:
    """Train, test and track one run; the one place that sees the whole config.

    Args:
        cfg: the validated config.
        report: is told after every epoch how many are done and the validation metric that is the sweep's objective, by
            default the monitored one; when it answers True, training ends there, and the run as one that was pruned.
        began: is told the id of the MLflow run as soon as there is one.

    Raises:
        UserError: for an option that does not work, as far as possible before any data is read.
    """
    quieten()
    place = find_place(cfg["trainer"])
    if place.rank:
        return train_along(place)
    check_gpus(cfg["trainer"], place)
    cfg = {**cfg, "trainer": {**cfg["trainer"], "devices": place.num_local}}
    resume.check(cfg)
    plan = make_plan(cfg)
    store = open_store_of(cfg)
    experiment_id = preflight(cfg["tracking"]["uri"], cfg["tracking"]["experiment"])
    held_digest = _held_digest(cfg, store)
    if unregistered := resume.unregistered(cfg, experiment_id, held_digest):
        run_id, folder = unregistered
        _register(cfg, run_id)
        return RunResult(run_id, str(folder), "FINISHED", ExitCode.DONE)
    with resume.starting(cfg, experiment_id, held_digest) as start:
        return _train(start.settle(cfg), place, start, plan, store, experiment_id, report, began)


def train_along(place: Place) -> RunResult:
    """Fit and judge as another process than rank 0, which says what, and does all the rest."""
    quieten()
    folder = ""
    try:
        with following(place) as ranks:
            told = ranks.told()
            cfg = told["cfg"]
            check_gpus(cfg["trainer"], place)
            folder, dataset = cfg["paths"]["run"], cfg["dataset"]
            version = open_version(open_store_of(cfg), dataset["name"], dataset["version"])
            positive = _positive_index(cfg, version.manifest.classes)
            state, weights = (Path(told[name]) if told[name] else None for name in ("state", "weights"))
            start = Start(Path(folder), told["config_digest"], state=state, weights=weights)
            task = _Task(cfg, make_plan(cfg), version, positive, start, ranks)
            fit = _fit(task, None, (lambda *_: False) if told["reports"] else None)
            if not fit.callbacks.is_pruned:
                _judge(task, fit)
    except Interrupted:
        # Rank 0 still saves: a code of failure here would have srun and torchrun end it at once.
        return RunResult("", folder, "KILLED", ExitCode.DONE)
    return RunResult("", folder, "FINISHED", ExitCode.DONE)


def _train(
    cfg: Config,
    place: Place,
    start: Start,
    plan: Plan,
    store: Store,
    experiment_id: str,
    report: Report | None,
    began: Callable[[str], None] | None,
) -> RunResult:
    """Train where the run starts from, in its folder."""
    run = None
    try:
        with leading(place) as ranks, interruptible():
            version = _open_dataset(cfg, plan, store)
            start.check_dataset(version.manifest)
            positive = _positive_index(cfg, version.manifest.classes)
            plan.loss(
                tuple(version.manifest.splits["train"].values())
            )  # class weights are refused before the run begins
            cfg = batch_size.settle(cfg, plan, version, place)
            run = _resume(cfg, start) if start.run_id else _start(cfg, start, version, experiment_id)
            if began:
                began(run.run_id)
            commit = _record(cfg, start, run, version.manifest)
            setting = _Setting(cfg, plan, version, positive, start, ranks, run, commit)
            ranks.at_worst = partial(_end, run, "FAILED")
            ranks.tell(_told(setting, report))
            fit = _fit(setting, RunLogger(run), report)
            if fit.callbacks.overfit:
                result = _overfit_result(setting, fit.trainer, fit.callbacks.overfit)
            elif fit.callbacks.is_pruned:
                result = _pruned_result(setting, fit)
            else:
                result = _conclude(setting, fit)
    except Interrupted as interruption:
        return _interrupted(cfg, start, run, str(interruption))
    except Exception as error:
        if run:
            run.log_text(traceback.format_exc(), "traceback.txt")
            _end(run, "FAILED", f"{type(error).__name__}: {error}")
        raise
    registers = result.package is not None and cfg["registry"]["register"]
    if registers:
        run.set_tags({PENDING: "true"})
    _end(run, "FINISHED")
    if registers:
        _register(cfg, run.run_id)
    return result


def _told(setting: _Setting, report: Report | None) -> dict[str, Any]:
    """Return what the other processes of a run need to know, which is no password."""
    manifest, start = setting.version.manifest, setting.start
    cfg = without_password(setting.cfg)
    return {
        "cfg": {**cfg, "dataset": {**cfg["dataset"], "version": manifest.version}},
        "config_digest": start.config_digest,
        "state": start.state and str(start.state),
        "weights": start.weights and str(start.weights),
        "reports": report is not None,
    }


def _held_digest(cfg: Config, store: Store) -> str | None:
    """Return the digest that a run must have begun with for `resume.from=auto`; None where nothing asks or tells it."""
    name, version = cfg["dataset"]["name"], cfg["dataset"]["version"]
    if cfg["resume"]["from"] != resume.AUTO or not is_held(store, name, version):
        return None
    return open_version(store, name, version).manifest.digest


def _open_dataset(cfg: Config, plan: Plan, store: Store) -> DatasetVersion:
    dataset = cfg["dataset"]
    if plan.source and not is_held(store, dataset["name"], dataset["version"]):
        _positive_index(cfg, plan.source.classes)  # known now, not after the publishing
    version = resolve(
        store,
        name=dataset["name"],
        version=dataset["version"],
        source=plan.source,
        publish=dataset["publish"],
        rule=plan.rule,
        on_bad_image=dataset["on_bad_image"],
        allow_duplicates=dataset["allow_duplicates"],
    )
    manifest = version.manifest
    num_pictures = {split: sum(of_class.values()) for split, of_class in counts(version, plan.fold).items()}
    sizes = ", ".join(f"{num:,} {split}" for split, num in num_pictures.items())
    size = f"{sizes}; {len(manifest.classes)} classes; digest {manifest.digest[:12]}"
    say(f"dataset: {manifest.name} {manifest.version} ({size})")
    for finding in manifest.findings:
        say(f"finding: {finding}")
    return version


def _positive_index(cfg: Config, classes: tuple[str, ...]) -> int | None:
    """Return the index of the class that is looked for, once what depends on the classes is found to be right."""
    positive_class = cfg["dataset"]["positive_class"]
    threshold.check(cfg["decision"], len(classes))
    if len(classes) != 2:
        if positive_class is not None:
            raise UserError(
                f"dataset.positive_class={positive_class}: means nothing with {len(classes)} classes, whose metrics "
                "are macro averages. Set it to null."
            )
        return None
    if positive_class is None:
        raise UserError(
            f"dataset.positive_class: required with two classes. Choose the one to find: {' or '.join(classes)}."
        )
    return classes.index(one_of("dataset.positive_class", positive_class, classes))


def _start(cfg: Config, start: Start, version: DatasetVersion, experiment_id: str) -> Run:
    tracking, optimizer = cfg["tracking"], optimizer_name(cfg["optimizer"]).lower()
    sweep = cfg["sweep"]
    tags = {str(key): str(value) for key, value in tracking["tags"].items()}
    if sweep["parent_run_id"]:
        tags[SWEEP] = sweep["name"]
    if sweep["trial"] is not None:
        tags["trial"] = str(sweep["trial"])
    return Run.start(
        tracking["uri"],
        experiment_id,
        name=tracking["run_name"] or f"{version.manifest.name} {cfg['model']['name']} {optimizer}",
        tags=tags | start.tags(),
        buffer_dir=start.folder,
        system_metrics=tracking["system_metrics"],
        parent_run_id=sweep["parent_run_id"],
    )


def _resume(cfg: Config, start: Start) -> Run:
    assert start.run_id
    tracking = cfg["tracking"]
    run = Run.resume(tracking["uri"], start.run_id, start.folder, system_metrics=tracking["system_metrics"])
    run.set_tags(start.tags())
    return run


def _record(cfg: Config, start: Start, run: Run, manifest: Manifest) -> str:
    """Record what the run is, once, and the code of every start of it; return the commit."""
    if start.has_facts:
        return log_code(run, f"code/resume-{start.num_resumes}")
    Record(run.run_id, manifest.digest, without_password(cfg)).write(start.folder)
    return log_facts(run, cfg, manifest)


def _interrupted(cfg: Config, start: Start, run: Run | None, reason: str) -> RunResult:
    folder = cfg["paths"]["run"]
    if run:
        is_resumable = snapshots.is_any(Path(folder) / "checkpoints")
        run.set_tags({RESUMABLE: str(is_resumable).lower()})
        _end(run, "KILLED", reason)
        say(f"{reason}: run {run.run_id} is KILLED in MLflow")
        if is_resumable and not cfg["sweep"]["parent_run_id"]:
            say(f"go on: {resume.command(run.run_id)}")
    elif start.run_id:
        say(f"{reason}, before run {start.run_id} went on: {resume.command(start.run_id)}")
    else:
        say(f"{reason}, before the run began")
    return RunResult(run.run_id if run else start.run_id or "", folder, "KILLED", ExitCode.INTERRUPTED)


def _end(run: Run, status: Status, reason: str | None = None) -> None:
    unsent = run.end(status, reason)
    if unsent:
        say(unsent)


def _fit(task: _Task, logger: Logger | None, report: Report | None) -> _Fit:
    cfg, plan, version, ranks = task.cfg, task.plan, task.version, task.ranks
    L.seed_everything(cfg["seed"], workers=True, verbose=False)
    overfits = cfg["trainer"]["overfit_below"]
    with ranks.in_turn():
        pictures = {split: pictures_of(cfg, version, "train" if overfits else split) for split in SPLITS}
    train = pictures["train"]
    threshold.check(cfg["decision"], len(version.manifest.classes), pictures["val"].labels)
    loss = loss_of(plan.loss, train.labels, train.targets, len(version.manifest.classes))
    classifier, origin = _classifier(cfg, version, train, task.start.weights)
    say(f"model: {origin}")
    if isinstance(task, _Setting):
        origin = _first_origin(task, origin)
    precision, why = precisions.choose(cfg["trainer"]["precision"], cfg["trainer"]["accelerator"])
    say(f"precision: {precision} ({why})")
    callbacks = make_callbacks(cfg, plan, report)
    profiler = SimpleProfiler() if cfg["trainer"]["profile"] else None
    trainer = make_trainer(cfg, precision, logger, callbacks, profiler, ranks.place)
    examples = pictures
    if cfg["model"]["freeze"] == "backbone":
        with ranks.in_turn():
            examples = _features(cfg, plan, version, classifier, pictures, precision, trainer)
    module = _module(cfg, plan, classifier, loss, task.positive, is_varied=overfits is None)
    ranks.join(trainer.strategy.root_device)
    trainer.fit(module, datamodule=_data(cfg, examples), ckpt_path=task.start.state, weights_only=True)
    if profiler:
        summary.print_profile(profiler.recorded_durations)
    return _Fit(trainer, module, callbacks, pictures, examples, origin, f"{precision} ({why})")


def _judge(task: _Task, fit: _Fit) -> tuple[Decision, Predictions, Predictions]:
    """Judge the checkpoint that counts: the last that all processes do together."""
    judged = judge(
        fit.trainer,
        fit.module,
        Path(fit.callbacks.best.checkpoint.best_model_path),
        fit.examples,
        classes=task.version.manifest.classes,
        positive=task.positive,
        batch_size=task.cfg["dataset"]["batch_size"],
        options=task.cfg["decision"],
    )
    task.ranks.leave()
    return judged


def _conclude(setting: _Setting, fit: _Fit) -> RunResult:
    """Judge the checkpoint that counts, report, and make the package of a run that qualifies."""
    cfg, manifest, run, best = setting.cfg, setting.version.manifest, setting.run, fit.callbacks.best
    checkpoint = Path(best.checkpoint.best_model_path)
    decision, validation, test = _judge(setting, fit)
    about = card(cfg, manifest, fit.pictures, run.run_id, fit.origin, fit.precision, best.epoch)
    evaluation = report(
        setting.folder / "evaluation",
        validation=validation,
        test=test,
        decision=decision,
        pictures=cast("NDArray[np.uint8]", fit.pictures["test"].inputs),  # or what stands for them
        augmented=_augmented(setting.plan.augment, fit.pictures["train"], cfg["seed"]),
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
    package = _package(setting, fit, checkpoint, decision.calibrate(validation.probabilities), evaluation)
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
    setting: _Setting, fit: _Fit, checkpoint: Path, calibrated: NDArray[np.float64], evaluation: Evaluation
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
    package(checkpoint, folder, fit.pictures, calibrated, facts=facts, config=to_yaml(without_password(setting.cfg)))
    setting.run.log_artifact(folder)
    return folder


def _is_left_to_sweep(cfg: Config) -> bool:
    """Tell whether the run is one of a multirun whose end chooses what is registered."""
    return bool(cfg["sweep"]["parent_run_id"]) and cfg["sweep"]["register"] != "all"


def _register(cfg: Config, run_id: str) -> None:
    """Make a candidate of a run that qualified."""
    try:
        registration = register(cfg["tracking"]["uri"], run_id, cfg["registry"]["name"])
    except UserError as error:  # the run is done and kept: only its registration waits
        complain(f"not registered: {error}\nLater: python promote.py action=register run_id={run_id}")
        return
    say(registration.describe())


def _first_origin(setting: _Setting, origin: str) -> str:
    """Return where the weights came from when the run began, which its folder keeps."""
    if setting.start.origin:
        return setting.start.origin
    if record := Record.read(setting.folder):
        replace(record, origin=origin).write(setting.folder)
    return origin


def _module(
    cfg: Config, plan: Plan, classifier: Classifier, loss: Loss, positive: int | None, *, is_varied: bool
) -> TrainingModule:
    return TrainingModule(
        classifier,
        optimizer=plan.optimizer,
        scheduler=plan.scheduler,
        loss=loss,
        augment=plan.augment if is_varied else Identity(),
        positive=positive,
        monitor=cfg["monitor"],
        seed=cfg["seed"],
        decay_norms_and_biases=cfg["trainer"]["decay_norms_and_biases"],
        is_compiled=cfg["trainer"]["compile"],
    )


def _data(cfg: Config, examples: Mapping[str, Examples]) -> ImageDataModule:
    dataset = cfg["dataset"]
    return ImageDataModule(
        *(examples[split] for split in SPLITS),
        batch_size=dataset["batch_size"],
        seed=cfg["seed"],
        is_balanced=dataset["sampler"] == "balanced",
    )


def _classifier(cfg: Config, version: DatasetVersion, train: Examples, start: Path | None) -> tuple[Classifier, str]:
    model, dataset = cfg["model"], cfg["dataset"]
    weights = start or (Path(model["weights"]) if model["weights"] else None)
    classifier, origin = classifiers.build(
        name=model["name"],
        options=model["options"],
        pretrained=model["pretrained"] and start is None,
        weights_file=weights,
        normalise=model["normalise"],
        classes=version.manifest.classes,
        image_size=dataset["image_size"],
        resize=dataset["resize"],
        data_mean=version.manifest.mean,
        data_std=version.manifest.std,
        tta=model["tta"],
    )
    if not cfg["trainer"]["channels_last"]:
        classifier.part_channels()
    if start and load_head(classifier, start):
        origin += ", with its head"
    if isinstance(classifier.backbone, Initialised) and not weights:
        rows = np.linspace(0, len(train) - 1, min(NUM_SEEN, len(train))).astype(int)  # of every class
        classifier.initialise(torch.from_numpy(train.inputs[rows]))
    if model["freeze"] == "backbone":
        classifier.freeze_backbone()
    return classifier, origin


def _features(
    cfg: Config,
    plan: Plan,
    version: DatasetVersion,
    classifier: Classifier,
    examples: dict[str, Examples],
    precision: str,
    trainer: L.Trainer,
) -> dict[str, Examples]:
    """Replace pictures by the features of the frozen backbone; only training pictures have augmented views.

    Those that choose and judge the model are made in float32, as in serving.
    """
    num_views = 0 if cfg["trainer"]["overfit_below"] else cfg["model"]["cached_views"]
    return {
        split: cached_features(
            classifier,
            each,
            digest=version.manifest.digest,
            cache_dir=Path(cfg["paths"]["cache"]),
            device=trainer.strategy.root_device,
            precision=precision if split == "train" else "32-true",
            augment=plan.augment,
            num_views=num_views if split == "train" else 0,
            recipe=cfg["augment"],
            seed=cfg["seed"],
        )
        for split, each in examples.items()
    }


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
    run.log_artifact(checkpoint, "checkpoints")


def _overfit_result(setting: _Setting, trainer: L.Trainer, overfit: OverfitBelow) -> RunResult:
    run = setting.run
    verdict = f"loss {overfit.last_loss:.4f} on one batch after {trainer.current_epoch} steps"
    run.set_tags({"qualified": "false", "qualification": f"one-batch test: {verdict}"})
    say(f"overfit: {'yes' if overfit.has_succeeded else 'no'}, {verdict} (asked for < {overfit.loss})")
    return RunResult(
        run_id=run.run_id,
        folder=str(setting.folder),
        status="FINISHED",
        exit_code=ExitCode.DONE if overfit.has_succeeded else ExitCode.NO,
        num_epochs=trainer.current_epoch,
    )


def _pruned_result(setting: _Setting, fit: _Fit) -> RunResult:
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
