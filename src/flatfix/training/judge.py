"""Judge a trained classifier: validation chooses how it decides, test measures what that is worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from flatfix.data.cache import Examples
from flatfix.data.datamodule import BatchLoader
from flatfix.evaluation.predictions import Predictions
from flatfix.evaluation.threshold import decide
from flatfix.inference.decision import Decision
from flatfix.training.checkpoint_io import write_decision
from flatfix.training.module import TrainingModule


def judge(
    trainer: L.Trainer,
    module: TrainingModule,
    checkpoint: Path,
    examples: Mapping[str, Examples],
    *,
    classes: tuple[str, ...],
    positive: int | None,
    batch_size: int,
    options: Mapping[str, Any],
) -> tuple[Decision, Predictions, Predictions]:
    """Load a checkpoint, choose how it decides, write that into it, and predict validation and test.

    Args:
        trainer: runs the module; no step is taken.
        module: gets the weights of the checkpoint.
        checkpoint: the one that counts; rank 0 replaces it by one that knows its decision.
        examples: `val` and `test`.
        classes: names in label order.
        positive: index of the positive class for two classes, else None.
        batch_size: pictures a step.
        options: those of the config group `decision`.

    Returns:
        The decision, and the predictions of validation and of test as the model gives them, before the decision.
    """

    def predict(split: str) -> Predictions:
        loader = BatchLoader(
            examples[split],
            batch_size,
            is_training=False,
            rank=trainer.global_rank,
            num_ranks=trainer.world_size,
        )
        trainer.test(module, dataloaders=loader, verbose=False)
        labels, probabilities, indices = module.test_accumulator.predictions()
        order = np.argsort(indices)
        return Predictions(examples[split].ids, labels[order], probabilities[order], classes)

    # Not by `trainer.test(ckpt_path=...)`, which would give callbacks what they knew then, too.
    module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    validation, test = predict("val"), predict("test")
    decision = decide(validation.labels, validation.probabilities, positive, **options)
    if trainer.is_global_zero:
        write_decision(checkpoint, decision)
    return decision, validation, test
