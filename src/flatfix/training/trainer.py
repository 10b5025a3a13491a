"""Lightning's trainer as a config describes it, and what it calls on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler

from flatfix.evaluation.metrics import METRICS
from flatfix.training.averaging import MovingAverage
from flatfix.training.callbacks import BestEpoch, EarlyStopping, EpochProgress, OverfitBelow, Pruning
from flatfix.training.checkpoint_io import AtomicCheckpointIO
from flatfix.training.devices import Place
from flatfix.training.plan import Plan
from flatfix.training.snapshots import BEST, CHECKPOINTS, Snapshots
from flatfix.training.speed import Unprofiled, skip_idle_hooks

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Callbacks:
    """What a trainer calls, in this order.

    Attributes:
        overfit: ends the one-batch test, which has no checkpoints and no epoch that counts.
        averaging: puts the average of the weights in their place, before they are validated and saved.
        checkpoint: writes the weights of the epoch that counts.
        snapshots: writes what the run can go on from.
        best: remembers the epoch that counts.
        early_stopping: ends a run without progress.
        progress: shows how far it is.
        pruning: ends a trial that leads nowhere.
    """

    averaging: MovingAverage | None
    checkpoint: ModelCheckpoint
    snapshots: Snapshots
    best: BestEpoch
    progress: EpochProgress
    early_stopping: EarlyStopping | None
    pruning: Pruning | None
    overfit: OverfitBelow | None

    def __iter__(self) -> Iterator[Callback]:
        """Yield those that this run has."""
        kept = [self.averaging, self.checkpoint, self.snapshots, self.best, self.early_stopping]
        yield from (each for each in (*([self.overfit] if self.overfit else kept), self.progress, self.pruning) if each)

    @property
    def is_pruned(self) -> bool:
        """Tell whether a sweep cut the training short."""
        return self.pruning is not None and self.pruning.is_pruned


def make_callbacks(cfg: Config, plan: Plan, report: Callable[[int, float], bool] | None) -> Callbacks:
    """Make the callbacks of a run; `report` is told of every epoch where a sweep wants to be."""
    folder = Path(cfg["paths"]["run"]) / CHECKPOINTS
    monitor, overfits = cfg["monitor"], cfg["trainer"]["overfit_below"]
    checkpoint = ModelCheckpoint(
        dirpath=folder,
        filename=Path(BEST).stem,
        monitor=f"val/{monitor}",
        mode=METRICS[monitor],
        save_on_train_epoch_end=False,
        enable_version_counter=False,  # a run that goes on may write once more what a later epoch, now lost, wrote
    )
    snapshots = Snapshots(
        folder,
        every_steps=cfg["trainer"]["checkpoint_every_steps"],
        every_minutes=cfg["trainer"]["checkpoint_every_minutes"],
    )
    decay = cfg["trainer"]["ema_decay"]
    stopping, objective = cfg["callbacks"]["early_stopping"], cfg["sweep"]["objectives"][0]
    return Callbacks(
        averaging=MovingAverage(decay) if decay else None,
        checkpoint=checkpoint,
        snapshots=snapshots,
        best=BestEpoch(checkpoint, plan.bounds, plan.stop_when_qualified),
        progress=EpochProgress(monitor),
        early_stopping=EarlyStopping(stopping["patience"], stopping["delta"]) if stopping["patience"] else None,
        pruning=Pruning(report, objective) if report and objective in METRICS and not overfits else None,
        overfit=OverfitBelow(overfits) if overfits else None,
    )


def make_trainer(
    cfg: Config,
    precision: str,
    logger: Logger | None,
    callbacks: Callbacks,
    profiler: Profiler | None,
    place: Place,
) -> L.Trainer:
    """Make the trainer of a run; `precision` is Lightning's name of it, and rank 0 alone has a logger."""
    trainer = cfg["trainer"]
    if not torch.cuda.is_available():
        # Set by Lightning, it has torch look for NVIDIA's library in every step of an optimizer.
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    made = L.Trainer(
        max_epochs=trainer["max_epochs"],
        accelerator=trainer["accelerator"],
        **place.lightning(),
        precision=precision,  # type: ignore[arg-type]
        gradient_clip_val=trainer["gradient_clip"],
        accumulate_grad_batches=1 if callbacks.overfit else trainer["accumulate"],  # its epochs are of one batch
        logger=logger or False,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        profiler=profiler or Unprofiled(),
        enable_checkpointing=callbacks.overfit is None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=cfg["paths"]["run"],
    )
    for callback in made.callbacks:  # type: ignore[attr-defined]
        skip_idle_hooks(callback)
    return made
