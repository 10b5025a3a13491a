from __future__ import annotations

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Checkpoint

from flatfix.data.cache import Examples
from flatfix.data.datamodule import ImageDataModule
from flatfix.training.module import TrainingModule


def examples(count: int, split: str, num_classes: int = 3) -> Examples:
    """Draw pictures of 32 pixels a side whose brightness tells their class; soft targets are nearly sure of it."""
    rng = np.random.default_rng(len(split))
    labels = np.arange(count, dtype=np.int64) % num_classes
    pixels = rng.integers(0, 160, (count, 32, 32, 3)) + 30 * labels[:, None, None, None]
    targets = 0.9 * np.eye(num_classes, dtype=np.float32)[labels] + np.float32(0.1 / num_classes)
    return Examples(pixels.astype(np.uint8), labels, [f"{split}-{number}" for number in range(count)], split, targets)


def fit(
    module: TrainingModule,
    *callbacks: L.Callback,
    data: ImageDataModule | None = None,
    **options: object,
) -> L.Trainer:
    """Fit on the CPU in silence; without `data`, an epoch is 5 batches of 8 pictures."""
    splits = [examples(count, name) for name, count in (("train", 40), ("val", 12), ("test", 12))]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **{"max_epochs": 1, **options},  # type: ignore[arg-type]
    )
    trainer.fit(module, datamodule=data or ImageDataModule(*splits, batch_size=8, seed=0))
    return trainer


class Losses(L.Callback):
    """Keep the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: object, pl_module: object, outputs: dict[str, object], *_: object) -> None:
        self.seen.append(float(outputs["loss"]))  # type: ignore[arg-type]


class Rates(L.Callback):
    """Keep the learning rate of every epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: object) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])
