"""Collect what an epoch predicted, on the device, and read it once at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from flatfix.evaluation import metrics
from flatfix.training.ranks import from_rank_zero


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

    def content(self) -> dict[str, Tensor]:
        """Return what this rank has kept, as the one batch that `update` takes to hold it again."""
        return {name: torch.cat(getattr(self, name)).cpu() for name in ("logits", "labels", "indices")}

    def compute(self) -> dict[str, float]:
        """Return the metrics of the epoch, which rank 0 computes: the last digit of another machine's may differ."""
        labels, probabilities, _ = self._on_host()
        return from_rank_zero(lambda: metrics.compute(labels, probabilities, self.positive))

    def predictions(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Return labels `[N]`, probabilities `[N, C]` and row numbers `[N]` of all ranks on the host."""
        with self.sync_context():
            return self._on_host()

    def _on_host(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        logits, labels, indices = (
            torch.cat(state if isinstance(state, list) else [state]).cpu()
            for state in (self.logits, self.labels, self.indices)
        )
        return labels.numpy(), logits.double().softmax(dim=1).numpy(), indices.numpy()
