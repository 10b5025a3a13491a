from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint

from flatfix.data.cache import Examples
from flatfix.data.datamodule import Batch, ImageDataModule, generator
from flatfix.errors import UserError
from flatfix.models.classifier import load_checkpoint
from flatfix.training import schedulers
from flatfix.training.augment import Cutmix, Dihedral, Identity, Inspection, Mixup
from flatfix.training.losses import CrossEntropy, Focal, Loss, SoftTargets
from flatfix.training.module import TrainingModule
from tests.helpers.fit import Losses, Rates, examples, fit
from tests.helpers.models import MODELS, make_classifier, make_module

GOLDEN_LOSSES = [1.1422, 1.0489, 1.0391, 0.8401, 1.0107]


def test_five_steps_at_a_fixed_seed_give_the_golden_losses() -> None:
    L.seed_everything(0, verbose=False)
    losses = Losses()
    optimizer = partial(torch.optim.SGD, lr=0.001, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = partial(schedulers.cosine, warmup_epochs=0.5)
    fit(make_module(optimizer=optimizer, scheduler=scheduler, augment=Inspection()), losses)
    assert losses.seen == pytest.approx(GOLDEN_LOSSES, abs=5e-5)


def a_batch(targets: torch.Tensor | None = None) -> Batch:
    images = torch.randint(0, 256, (8, 32, 32, 3), generator=torch.Generator().manual_seed(1))
    return Batch(images.to(torch.uint8), torch.arange(8) % 3, torch.arange(8), targets)


def step(module: TrainingModule, batch: Batch) -> torch.Tensor:
    module.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    return module.training_step(batch, 0)


def test_a_step_draws_the_same_augmentation_whatever_was_drawn_before() -> None:
    def loss_of_a_step(noise: int) -> float:
        L.seed_everything(0, verbose=False)
        module = make_module(make_classifier(), augment=Inspection())
        torch.rand(noise)
        return step(module, a_batch()).item()

    assert loss_of_a_step(noise=0) == loss_of_a_step(noise=1000)


@pytest.mark.parametrize("augment", [Mixup(alpha=1.0, first=Dihedral()), Cutmix(alpha=1.0, first=Dihedral())])
def test_a_mixed_picture_costs_the_losses_of_both_labels_by_their_shares(augment: Mixup | Cutmix) -> None:
    module, batch = make_module(augment=augment, seed=7), a_batch()
    mixing = augment.mix(batch.inputs, generator(7, 0, 0))
    logits = module.classifier(mixing.images).logits
    own = F.cross_entropy(logits, batch.labels, reduction="none")
    other = F.cross_entropy(logits, batch.labels[mixing.partners], reduction="none")
    expected = (mixing.shares * own + (1 - mixing.shares) * other).mean()
    assert step(module, batch).item() == pytest.approx(expected.item(), rel=1e-5)

    (counted,) = module.train_accumulator.labels
    for row, share in enumerate(mixing.shares.tolist()):
        assert counted[row] == batch.labels[row if share >= 0.5 else mixing.partners[row]]
    assert (mixing.shares < 0.5).any() and (mixing.shares > 0.5).any()


@pytest.mark.parametrize("loss", [Focal((1, 2, 3), class_weights="auto"), CrossEntropy((1, 1, 1), label_smoothing=0.1)])
def test_every_loss_takes_mixed_pictures(loss: Loss) -> None:
    value = step(make_module(augment=Mixup(alpha=0.2, first=Dihedral()), loss=loss), a_batch())
    value.backward()
    assert value.isfinite()


def test_soft_targets_are_learnt_in_place_of_labels_and_are_mixed_like_them() -> None:
    targets = torch.randn(8, 3, generator=torch.Generator().manual_seed(2)).softmax(1)
    batch, loss = a_batch(targets), SoftTargets((1, 1, 1))
    plain = make_module(loss=loss)
    expected = F.cross_entropy(plain.classifier(batch.inputs).logits, targets)
    assert step(plain, batch).item() == pytest.approx(expected.item(), rel=1e-5)

    augment = Mixup(alpha=1.0, first=Dihedral())
    module = make_module(loss=loss, augment=augment, seed=7)
    mixing = augment.mix(batch.inputs, generator(7, 0, 0))
    shares = mixing.shares[:, None]
    mixed = shares * targets + (1 - shares) * targets[mixing.partners]
    expected = F.cross_entropy(module.classifier(mixing.images).logits, mixed)
    assert step(module, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def fit_plateau(*callbacks: L.Callback, patience: int, lr: float, monitor: str, epochs: int) -> list[float]:
    """Return the learning rate of each epoch in which the head alone learns 12 rows of noise, here train and val."""
    L.seed_everything(0, verbose=False)
    classifier = make_classifier()
    classifier.freeze_backbone()
    inputs = torch.randn(12, classifier.num_features).numpy()
    rows = Examples(inputs, np.arange(12) % 3, [str(number) for number in range(12)], "train")
    module = make_module(
        classifier,
        optimizer=partial(torch.optim.SGD, lr=lr),
        scheduler=partial(schedulers.plateau, patience=patience),
        monitor=monitor,
    )
    rates = Rates()
    fit(module, rates, *callbacks, data=ImageDataModule(rows, rows, rows, batch_size=4, seed=0), max_epochs=epochs)
    return rates.seen


def test_plateau_lowers_the_rate_after_patience_epochs_without_progress() -> None:
    seen = fit_plateau(patience=2, lr=1e-6, monitor="accuracy", epochs=6)
    assert seen == pytest.approx([1e-6, 1e-6, 1e-6, 1e-7, 1e-7, 1e-8])


def test_plateau_keeps_the_rate_while_the_monitored_metric_makes_progress() -> None:
    assert fit_plateau(patience=1, lr=1e-3, monitor="loss", epochs=4) == [1e-3] * 4


def test_the_checkpoint_of_an_epoch_knows_what_plateau_made_of_it(tmp_path: Path) -> None:
    save = ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=False)
    fit_plateau(save, patience=2, lr=1e-6, monitor="accuracy", epochs=3)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-7)
    assert state["lr_schedulers"][0]["last_epoch"] == 3


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


class Diary:
    changes_pictures = True

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        raise AssertionError("a picture is varied without its row and epoch")

    def vary(self, images: torch.Tensor, generator: torch.Generator, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        self.seen += [(epoch, row) for row in rows.tolist()]
        return images


def test_an_augmentation_that_goes_by_the_epoch_is_told_each_row_of_it_once() -> None:
    diary = Diary()
    fit(make_module(augment=diary), max_epochs=2)
    assert sorted(diary.seen) == [(epoch, row) for epoch in (0, 1) for row in range(40)]


class Draws(Identity):
    """Keep the first number that each batch would draw."""

    changes_pictures = True

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.seen.append(torch.rand(1, generator=generator).item())
        return images


def test_every_batch_of_an_accumulated_step_draws_anew() -> None:
    one, two = Draws(), Draws()
    fit(make_module(augment=one))
    trainer = fit(make_module(augment=two), max_epochs=2, accumulate_grad_batches=2)
    assert trainer.global_step == 6  # of 5 batches in an epoch the last is alone
    assert len(set(two.seen)) == len(two.seen) == 10
    assert two.seen[0] == one.seen[0]


def test_accumulated_batches_make_the_step_of_one_large_batch_clipped_as_one() -> None:
    def weights(batch_size: int, accumulate: int) -> torch.Tensor:
        L.seed_everything(0, verbose=False)
        splits = [examples(count, name) for name, count in (("train", 32), ("val", 8), ("test", 8))]
        data = ImageDataModule(*splits, batch_size=batch_size, seed=0)
        module = make_module(make_classifier("tiny_vgg"))  # without batch normalisation
        fit(module, data=data, accumulate_grad_batches=accumulate, gradient_clip_val=0.05)
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    torch.testing.assert_close(weights(8, 2), weights(16, 1), rtol=0, atol=1e-6)
    assert not torch.equal(weights(8, 1), weights(16, 1))


def test_a_schedule_of_accumulated_steps_ends_with_the_run() -> None:
    scheduler = partial(schedulers.cosine, warmup_epochs=0, final_ratio=0.0)
    trainer = fit(make_module(scheduler=scheduler), max_epochs=2, accumulate_grad_batches=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_window_longer_than_an_epoch_is_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.accumulate=6: an epoch has only 5 batches"):
        fit(make_module(), accumulate_grad_batches=6)
