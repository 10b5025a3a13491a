from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from flatfix.models.classifier import load_checkpoint
from flatfix.training.averaging import MovingAverage
from flatfix.training.module import TrainingModule
from tests.helpers.fit import fit
from tests.helpers.models import make_classifier, make_module


def fast() -> TrainingModule:
    L.seed_everything(0, verbose=False)
    return make_module(make_classifier("cnn"), optimizer=partial(torch.optim.SGD, lr=0.5))


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if value.is_floating_point()}


class Weights(L.Callback):
    """Keep the weights after each optimizer step, and those that are validated."""

    def __init__(self) -> None:
        self.begun: dict[str, Tensor] = {}
        self.trained: list[dict[str, Tensor]] = []
        self.validated: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.begun = state_of(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.trained):
            self.trained.append(state_of(pl_module))

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.validated = state_of(pl_module)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_validated_saved_and_rebuilt_is_the_average_of_the_steps(tmp_path: Path, accumulate: int) -> None:
    seen = Weights()
    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="best", save_on_train_epoch_end=False)
    trainer = fit(fast(), MovingAverage(0.3), seen, checkpoint, accumulate_grad_batches=accumulate)

    expected = seen.begun
    for number, weights in enumerate(seen.trained, 1):
        keep = min(0.3, (1 + number) / (10 + number))
        expected = {name: keep * expected[name] + (1 - keep) * value for name, value in weights.items()}
    assert len(seen.trained) == {1: 5, 2: 3}[accumulate]
    rebuilt = load_checkpoint(tmp_path / "best.ckpt").state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(seen.validated[name], value)
        assert torch.equal(rebuilt[name.removeprefix("classifier.")], seen.validated[name])
    apart = [name for name, value in expected.items() if not torch.allclose(value, seen.trained[-1][name])]
    assert any("running_var" in name for name in apart) and any(name.endswith("weight") for name in apart)
    after = state_of(trainer.lightning_module)
    assert all(torch.equal(after[name], value) for name, value in seen.trained[-1].items())  # training could go on


def test_averaging_leaves_training_as_it_is() -> None:
    averaged, plain = Weights(), Weights()
    fit(fast(), MovingAverage(0.9), averaged, max_epochs=2)
    fit(fast(), plain, max_epochs=2)
    assert all(torch.equal(value, averaged.trained[-1][name]) for name, value in plain.trained[-1].items())
