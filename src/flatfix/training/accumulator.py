"""Collect what an epoch predicted, on the device, and read it once at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from flatfix.evaluation import metrics


class Accumulator(Metric):
    """Hold logits `[N, C]`, labels `[N]` and row numbers `[N]` of an epoch; ranks are joined by torchmetrics.

    The figures come from `evaluation.metrics`, the one definition that training, evaluation and registry share.
    """

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]
    indices: list[Tensor]

    def __init__(self, positive: int | None, **options: Any) -> None:
        super().__init__(**options)
        self.positive = positive
        for name in ("logits", "labels", "indices"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Keep one batch; nothing is computed and no device is waited for."""
        self.logits.append(logits.detach().float())
        self.labels.append(labels)
        self.indices.append(indices)

    def compute(self) -> dict[str, float]:
        """Return the metrics of the epoch."""
        labels, probabilities, _ = self.predictions()
        return metrics.compute(labels, probabilities, self.positive)

    def predictions(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Return labels `[N]`, probabilities `[N, C]` and row numbers `[N]` on the host."""
        logits, labels, indices = (
            torch.cat(state if isinstance(state, list) else [state]).cpu()
            for state in (self.logits, self.labels, self.indices)
        )
        return labels.numpy(), logits.double().softmax(dim=1).numpy(), indices.numpy()
