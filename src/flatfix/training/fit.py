"""Train the weights of a run: what all its processes do together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import SimpleProfiler

from flatfix import memory
from flatfix.console import say
from flatfix.data.cache import Examples
from flatfix.data.datamodule import ImageDataModule
from flatfix.data.splits import SPLITS
from flatfix.data.version import DatasetVersion
from flatfix.evaluation import threshold
from flatfix.evaluation.predictions import Predictions
from flatfix.inference.decision import Decision
from flatfix.models import classifier as classifiers
from flatfix.models.classifier import Classifier, load_head
from flatfix.models.registration import Initialised
from flatfix.training import precision as precisions
from flatfix.training import summary
from flatfix.training.augment import Identity
from flatfix.training.dataset import pictures_of
from flatfix.training.features import cached_features
from flatfix.training.judge import judge
from flatfix.training.losses import Loss, loss_of
from flatfix.training.module import TrainingModule
from flatfix.training.plan import Plan
from flatfix.training.ranks import Ranks
from flatfix.training.resume import Start
from flatfix.training.trainer import Callbacks, make_callbacks, make_trainer

Config = Mapping[str, Any]
Report = Callable[[int, float], bool]
NUM_SEEN = 1024  # pictures that a backbone is shown before it trains


@dataclass(frozen=True)
class Task:
    """What every process of a run has before it trains."""

    cfg: Config
    plan: Plan
    version: DatasetVersion
    positive: int | None
    start: Start
    ranks: Ranks

    @property
    def folder(self) -> Path:
        """Where the run keeps its files."""
        return Path(self.cfg["paths"]["run"])


@dataclass(frozen=True)
class Prepared:
    """What is trained, and on what."""

    pictures: Mapping[str, Examples]  # by split
    classifier: Classifier
    loss: Loss
    origin: str  # of the weights


@dataclass(frozen=True)
class Fit:
    """What a run has once it has trained."""

    trainer: L.Trainer
    module: TrainingModule
    callbacks: Callbacks
    examples: Mapping[str, Examples]  # the pictures, or their features where the backbone is frozen
    precision: str


def prepare(task: Task) -> Prepared:
    """Decode the pictures, and build the classifier and its loss."""
    cfg, version = task.cfg, task.version
    L.seed_everything(cfg["seed"], workers=True, verbose=False)
    with task.ranks.in_turn():
        only_train = cfg["trainer"]["overfit_below"]
        pictures = {split: pictures_of(cfg, version, "train" if only_train else split) for split in SPLITS}
    train = pictures["train"]
    threshold.check(cfg["decision"], len(version.manifest.classes), pictures["val"].labels)
    loss = loss_of(task.plan.loss, train.labels, train.targets, len(version.manifest.classes))
    classifier, origin = _classifier(cfg, version, train, task.start.weights)
    say(f"model: {origin}")
    return Prepared(pictures, classifier, loss, origin)


def fit(task: Task, prepared: Prepared, logger: Logger | None, report: Report | None) -> Fit:
    """Train, from where the task starts.

    Args:
        task: what this process has.
        prepared: what is trained, and on what.
        logger: gets the metrics; None in processes that log nothing.
        report: is told the objective after every epoch, and may end the training.
    """
    cfg, plan, ranks = task.cfg, task.plan, task.ranks
    precision, why = precisions.choose(cfg["trainer"]["precision"], cfg["trainer"]["accelerator"], prepared.classifier)
    say(f"precision: {precision} ({why})")
    callbacks = make_callbacks(cfg, plan, report)
    profiler = SimpleProfiler() if cfg["trainer"]["profile"] else None
    trainer = make_trainer(cfg, precision, logger, callbacks, profiler, ranks.place)
    examples = prepared.pictures
    if cfg["model"]["freeze"] == "backbone":
        with ranks.in_turn():
            examples = _features(task, prepared, precision, trainer.strategy.root_device)
    module = _module(task, prepared)
    ranks.join(trainer.strategy.root_device)
    with memory.kept() if trainer.strategy.root_device.type == "cpu" else nullcontext():
        trainer.fit(module, datamodule=_data(cfg, examples), ckpt_path=task.start.state, weights_only=True)
    if profiler:
        summary.print_profile(profiler.recorded_durations)
    return Fit(trainer, module, callbacks, examples, f"{precision} ({why})")


def judge_best(task: Task, fit: Fit) -> tuple[Decision, Predictions, Predictions]:
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


def _features(task: Task, prepared: Prepared, precision: str, device: torch.device) -> dict[str, Examples]:
    """Replace pictures by the features of the frozen backbone; only training pictures have augmented views.

    Those that choose and judge the model are made in float32, as in serving.
    """
    cfg = task.cfg
    num_views = 0 if cfg["trainer"]["overfit_below"] else cfg["model"]["cached_views"]
    return {
        split: cached_features(
            prepared.classifier,
            each,
            digest=task.version.manifest.digest,
            cache_dir=Path(cfg["paths"]["cache"]),
            device=device,
            precision=precision if split == "train" else "32-true",
            augment=task.plan.augment,
            num_views=num_views if split == "train" else 0,
            recipe=cfg["augment"],
            seed=cfg["seed"],
        )
        for split, each in prepared.pictures.items()
    }


def _module(task: Task, prepared: Prepared) -> TrainingModule:
    cfg, plan = task.cfg, task.plan
    return TrainingModule(
        prepared.classifier,
        optimizer=plan.optimizer,
        scheduler=plan.scheduler,
        loss=prepared.loss,
        augment=Identity() if cfg["trainer"]["overfit_below"] else plan.augment,
        positive=task.positive,
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
