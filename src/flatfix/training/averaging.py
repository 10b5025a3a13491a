"""The moving average of the weights, which is judged in their place."""

from __future__ import annotations

from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn


class MovingAverage(WeightAveraging):
    """Average the weights exponentially over the optimizer's steps (Polyak & Juditsky 1992).

    The average is validated, and it is what a checkpoint holds as the weights of the model. The running statistics of
    batch normalisation are averaged as the weights are. Lightning does the exchange for validation, and what a
    checkpoint needs to go on.

    Args:
        decay: part of the average that a step keeps. The first steps keep less, `(1 + step) / (10 + step)` (as in
            TensorFlow's ExponentialMovingAverage): a short run is not judged by the weights it began with.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copy the weights to the device that trains, where Lightning moves the module only later."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Average, if the optimizer took a step; unlike `AveragedModel.update_parameters`, wait for no device."""
        step = trainer.global_step
        if step == self._latest_update_step:  # in a window of accumulated gradients
            return
        self._latest_update_step = step
        assert self._average_model is not None
        keep = min(self.decay, (1 + step) / (10 + step))
        averaged, current = _what_learns(self._average_model.module), _what_learns(pl_module)
        torch._foreach_lerp_(averaged, current, 1 - keep)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the module as it is: the last state is still to be saved, and what is judged is a checkpoint."""


def _what_learns(module: nn.Module) -> list[Tensor]:
    """Return the parameters that are trained, and the buffers but for counters, which no average is taken of."""
    parameters = (parameter for parameter in module.parameters() if parameter.requires_grad)
    return [tensor for tensor in chain(parameters, module.buffers()) if tensor.is_floating_point()]
