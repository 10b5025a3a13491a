from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from flatfix.data.cache import Examples
from flatfix.data.datamodule import Batch, ImageDataModule
from flatfix.errors import UserError
from flatfix.models.classifier import load_checkpoint
from flatfix.training import schedulers
from flatfix.training.augment import Inspection
from flatfix.training.module import TrainingModule
from tests.helpers.models import MODELS, make_classifier, make_module

GOLDEN_LOSSES = [1.1422, 1.0489, 1.0391, 0.8401, 1.0107]


def examples(count: int, split: str, num_classes: int = 3) -> Examples:
    rng = np.random.default_rng(len(split))
    labels = np.arange(count, dtype=np.int64) % num_classes
    pixels = rng.integers(0, 160, (count, 32, 32, 3)) + 30 * labels[:, None, None, None]
    return Examples(pixels.astype(np.uint8), labels, [f"{split}-{number}" for number in range(count)], split)


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(
        self, trainer: object, pl_module: object, outputs: dict[str, torch.Tensor], *_: object
    ) -> None:
        self.seen.append(float(outputs["loss"]))


def fit(module: TrainingModule, *callbacks: L.Callback, **options: object) -> L.Trainer:
    splits = [examples(count, name) for name, count in (("train", 40), ("val", 12), ("test", 12))]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **{"max_epochs": 1, **options},  # type: ignore[arg-type]
    )
    trainer.fit(module, datamodule=ImageDataModule(*splits, batch_size=8, seed=0))
    return trainer


def test_five_steps_at_a_fixed_seed_give_the_golden_losses() -> None:
    L.seed_everything(0, verbose=False)
    losses = Losses()
    optimizer = partial(torch.optim.SGD, lr=0.001, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = partial(schedulers.cosine, warmup_epochs=0.5)
    fit(make_module(optimizer=optimizer, scheduler=scheduler, augment=Inspection()), losses)
    assert losses.seen == pytest.approx(GOLDEN_LOSSES, abs=5e-5)


def test_a_step_draws_the_same_augmentation_whatever_was_drawn_before() -> None:
    def loss_of_a_step(noise: int) -> float:
        L.seed_everything(0, verbose=False)
        module = make_module(make_classifier(), augment=Inspection())
        torch.rand(noise)
        images, labels = (
            torch.randint(0, 256, (8, 32, 32, 3), generator=torch.Generator().manual_seed(1)),
            torch.arange(8) % 3,
        )
        module.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        return module.training_step(Batch(images.to(torch.uint8), labels, torch.arange(8)), 0).item()

    assert loss_of_a_step(noise=0) == loss_of_a_step(noise=1000)


def test_the_metrics_of_an_epoch_are_logged_under_their_keys() -> None:
    trainer = fit(make_module())
    names = ("loss", "accuracy", "precision", "recall", "f1", "auroc")
    expected = {f"{split}/{name}" for split in ("train", "val") for name in names}
    assert trainer.callback_metrics.keys() == expected | {"learning_rate", "images_per_second"}
    assert trainer.callback_metrics["learning_rate"] == pytest.approx(0.1)
    assert trainer.callback_metrics["images_per_second"] > 0


def test_a_model_that_can_learn_does() -> None:
    L.seed_everything(0, verbose=False)
    trainer = fit(make_module(optimizer=partial(torch.optim.Adam, lr=0.003)), max_epochs=15)
    assert trainer.callback_metrics["val/accuracy"] == 1.0
    assert trainer.callback_metrics["val/auroc"] == 1.0


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_a_step_and_comes_back_from_its_checkpoint_with_the_same_logits(
    name: str, tmp_path: Path
) -> None:
    L.seed_everything(0, verbose=False)
    module = make_module(make_classifier(name), optimizer=partial(torch.optim.SGD, lr=0.01))
    before = module.classifier.head.weight.detach().clone()
    trainer = fit(module, max_steps=1, max_epochs=-1, limit_val_batches=0)
    assert not torch.equal(module.classifier.head.weight, before)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    reloaded = load_checkpoint(tmp_path / "last.ckpt")
    with torch.inference_mode():
        assert torch.equal(reloaded(images).logits, module.eval().classifier(images).logits)
    assert reloaded.spec == module.classifier.spec


def test_a_file_that_is_no_checkpoint_of_ours_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of Flatfix"):
        load_checkpoint(tmp_path / "other.ckpt")
