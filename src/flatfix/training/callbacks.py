"""Callbacks: early stopping, pruning, qualification, the one-batch test, and progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from flatfix.console import bar, say
from flatfix.data.datamodule import Batch
from flatfix.evaluation.metrics import is_better
from flatfix.evaluation.qualification import Bound, qualify
from flatfix.training.module import TrainingModule
from flatfix.training.ranks import from_rank_zero


def epoch_metrics(module: L.LightningModule, split: str) -> dict[str, float]:
    """Return the metrics of the epoch that has just ended; callbacks come before the module's own logging of them."""
    assert isinstance(module, TrainingModule)
    return module.epoch_metrics(split)


def as_logged(value: float) -> float:
    """Return the float32 in which Lightning logs a value: what a sweep is told is what MLflow shows."""
    return float(np.float32(value))


class EarlyStopping(Callback):
    """Stop after `patience` epochs in which neither validation loss fell nor validation accuracy rose by `delta`."""

    def __init__(self, patience: int, delta: float) -> None:
        self.patience = patience
        self.delta = delta
        self.best_loss = float("inf")
        self.best_accuracy = float("-inf")
        self.num_idle_epochs = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the epochs without progress."""
        figures = epoch_metrics(pl_module, "val")
        self.num_idle_epochs += 1
        # The reference moves with what counts only: small steps in one direction add up to progress.
        if is_better("loss", figures["loss"], self.best_loss, self.delta):
            self.best_loss, self.num_idle_epochs = figures["loss"], 0
        if is_better("accuracy", figures["accuracy"], self.best_accuracy, self.delta):
            self.best_accuracy, self.num_idle_epochs = figures["accuracy"], 0
        if self.num_idle_epochs >= self.patience:
            trainer.should_stop = True
            say(f"early stop: no progress in {self.patience} epochs")

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        return {
            "best_loss": self.best_loss,
            "best_accuracy": self.best_accuracy,
            "num_idle_epochs": self.num_idle_epochs,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.best_loss = state_dict["best_loss"]
        self.best_accuracy = state_dict["best_accuracy"]
        self.num_idle_epochs = state_dict["num_idle_epochs"]


class BestEpoch(Callback):
    """Remember the epoch of the checkpoint that counts, and stop when its validation metrics reach every bound.

    Args:
        checkpoint: decides which epoch counts; it saves at the end of validation, before this callback looks.
        bounds: what qualifies.
        stop_when_qualified: end training at the first epoch that counts and qualifies.
    """

    def __init__(self, checkpoint: ModelCheckpoint, bounds: Sequence[Bound], stop_when_qualified: bool) -> None:
        self.checkpoint = checkpoint
        self.bounds = bounds
        self.stop_when_qualified = stop_when_qualified
        self.epoch = -1
        self.metrics: dict[str, float] = {}  # of validation, as logged in that epoch
        self._best_score: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the best epoch of the run whose state a new one begins with: its checkpoint stays where it is."""
        if self.checkpoint.best_model_score is None:
            self.epoch, self.metrics, self._best_score = -1, {}, None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look whether this epoch's checkpoint became the one that counts; validation has ended by now."""
        score = self.checkpoint.best_model_score
        if score is None or float(score) == self._best_score:
            return
        self._best_score = float(score)
        self.epoch = trainer.current_epoch
        figures = epoch_metrics(pl_module, "val")
        self.metrics = {name: as_logged(value) for name, value in figures.items()}
        if self.stop_when_qualified and qualify(figures, self.bounds).is_qualified:
            trainer.should_stop = True
            say(f"qualified in epoch {self.epoch + 1}: stopping")

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        return {"epoch": self.epoch, "metrics": self.metrics, "best_score": self._best_score}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.epoch, self.metrics = state_dict["epoch"], dict(state_dict["metrics"])
        self._best_score = state_dict["best_score"]


class Pruning(Callback):
    """Report a validation metric of every epoch, and stop when told that it leads nowhere.

    Args:
        report: takes the number of epochs done and the metric, and answers whether to stop.
        metric: a key of `METRICS`.
    """

    def __init__(self, report: Callable[[int, float], bool], metric: str) -> None:
        self.report = report
        self.metric = metric
        self.is_pruned = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask; validation has ended by now, and its checkpoint is written."""
        num_epochs, value = trainer.current_epoch + 1, as_logged(epoch_metrics(pl_module, "val")[self.metric])
        leads_nowhere = from_rank_zero(lambda: self.report(num_epochs, value))
        if leads_nowhere and num_epochs < (trainer.max_epochs or 1):  # the last one is trained by now
            self.is_pruned = trainer.should_stop = True
            say(f"pruned after epoch {num_epochs}: {self.metric} {value:.4f}")

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        return {"is_pruned": self.is_pruned}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.is_pruned = state_dict["is_pruned"]


class OverfitBelow(Callback):
    """Stop as soon as the training loss is below `loss`: the test that a model can learn one batch by heart."""

    def __init__(self, loss: float) -> None:
        self.loss = loss
        self.last_loss = float("nan")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the loss of the epoch, which is that of its one batch."""
        self.last_loss = epoch_metrics(pl_module, "train")["loss"]
        trainer.should_stop = trainer.should_stop or self.last_loss < self.loss

    @property
    def has_succeeded(self) -> bool:
        """Tell whether the loss came below the bound."""
        return self.last_loss < self.loss


class EpochProgress(Callback):
    """Show the pictures of an epoch, validation included, as a bar on a terminal, and close each epoch with a line."""

    def __init__(self, monitor: str) -> None:
        self.shown = dict.fromkeys(["loss", "accuracy", monitor])
        self._seconds_before = self._began = 0.0
        self._bar = bar()
        self._task = self._bar.add_task("")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and the bar where training goes on within an epoch."""
        self._began = time.perf_counter() - self._seconds_before
        if trainer.fit_loop.restarted_mid_epoch:
            self._start_bar(trainer, trainer.fit_loop.batch_idx + 1)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the bar."""
        self._start_bar(trainer, 0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move the bar."""
        self._bar.advance(self._task, len(batch.labels))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar."""
        self._bar.advance(self._task, len(batch.labels))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace the bar by the line: what was learnt, and how long it will still take."""
        self._bar.stop()
        train, val = epoch_metrics(pl_module, "train"), epoch_metrics(pl_module, "val")
        done, total = trainer.current_epoch + 1, trainer.max_epochs or 1
        left = (time.perf_counter() - self._began) / done * (total - done)
        figures = "  ".join(f"{name} {train[name]:.4f}/{val[name]:.4f}" for name in self.shown)
        say(f"{self._name_epoch(trainer)}  train/val: {figures}  {left:.0f} s left")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Clear the bar away."""
        self._bar.stop()

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        return {"seconds": time.perf_counter() - self._began}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._seconds_before = state_dict["seconds"]

    def _start_bar(self, trainer: L.Trainer, num_done: int) -> None:
        num_batches = trainer.num_training_batches + sum(trainer.num_val_batches)
        size = trainer.train_dataloader.batch_size  # type: ignore[union-attr]
        total, done = int(num_batches * size), num_done * size
        self._bar.reset(self._task, total=total, completed=done, description=self._name_epoch(trainer))
        self._bar.start()

    @staticmethod
    def _name_epoch(trainer: L.Trainer) -> str:
        total = trainer.max_epochs or 1
        return f"epoch {trainer.current_epoch + 1:>{len(str(total))}}/{total}"
