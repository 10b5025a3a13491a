from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch

from flatfix.data.cache import Examples
from flatfix.data.datamodule import BatchLoader, ImageDataModule
from flatfix.errors import UserError


def examples_of(num_pictures, split="train", targets=None):
    inputs = np.arange(num_pictures * 12, dtype=np.uint8).reshape(num_pictures, 2, 2, 3)
    labels = np.arange(num_pictures, dtype=np.int64) % 3
    return Examples(inputs, labels, [str(number) for number in range(num_pictures)], split, targets)


def unequal(*sizes):
    labels = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    return Examples(labels[:, None].astype(np.float32), labels, [str(row) for row in range(len(labels))], "train")


def rows(loader):
    return torch.cat([batch.indices for batch in loader]).tolist()


def training(num_pictures=100, batch_size=10, seed=0):
    return BatchLoader(examples_of(num_pictures), batch_size, is_training=True, seed=seed)


@pytest.mark.parametrize(("num_pictures", "batch_size"), [(20, 5), (23, 5), (3, 5), (1, 1), (0, 4)])
def test_evaluation_gives_every_picture_once_in_order(num_pictures, batch_size):
    loader = BatchLoader(examples_of(num_pictures), batch_size, is_training=False)

    batches = list(loader)

    assert len(batches) == len(loader)
    assert [row for batch in batches for row in batch.indices.tolist()] == list(range(num_pictures))


@pytest.mark.parametrize(
    ("num_pictures", "batch_size", "num_seen"), [(20, 5, 20), (23, 5, 20), (3, 5, 3), (5, 5, 5), (6, 5, 5)]
)
def test_training_drops_an_incomplete_batch_if_there_is_a_whole_one(num_pictures, batch_size, num_seen):
    loader = training(num_pictures, batch_size)

    batches = list(loader)

    assert len(batches) == len(loader)
    assert len({row for batch in batches for row in batch.indices.tolist()}) == num_seen


def test_inputs_labels_and_indices_belong_together():
    examples = examples_of(20)

    for batch in training(20, 6):
        np.testing.assert_array_equal(batch.inputs, examples.inputs[batch.indices])
        np.testing.assert_array_equal(batch.labels, examples.labels[batch.indices])
        assert batch.inputs.dtype == torch.uint8
        assert batch.labels.dtype == batch.indices.dtype == torch.int64


def test_the_order_depends_on_seed_and_epoch_only():
    first, second = training(), training()
    first.set_epoch(3)
    second.set_epoch(3)
    rows(first)
    torch.manual_seed(99)

    assert rows(first) == rows(second)


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    orders = set()
    for seed in range(4):
        loader = training(seed=seed)
        for epoch in range(4):
            loader.set_epoch(epoch)
            orders.add(tuple(rows(loader)))

    assert len(orders) == 16


def test_drawing_the_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    rows(training())

    assert torch.rand(1) == expected


def test_changing_a_batch_in_place_does_not_change_the_examples():
    loader = BatchLoader(examples_of(10), 4, is_training=False)
    for batch in loader:
        batch.inputs.zero_()
        batch.labels.zero_()

    assert next(iter(loader)).inputs.any()
    assert next(iter(loader)).labels.any()


def test_features_are_batched_like_pictures():
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    loader = BatchLoader(Examples(features, np.zeros(6, dtype=np.int64), list("abcdef"), "val"), 4, is_training=False)

    assert [batch.inputs.shape for batch in loader] == [(4, 2), (2, 2)]


def test_soft_labels_belong_to_their_pictures_and_without_them_there_are_none():
    targets = np.random.default_rng(0).random((20, 3), dtype=np.float32)

    for batch in BatchLoader(examples_of(20, targets=targets), 6, is_training=True):
        np.testing.assert_array_equal(batch.targets, targets[batch.indices])
    assert all(batch.targets is None for batch in training(20, 6))


def balanced(*sizes, batch_size=1, seed=0):
    return BatchLoader(unequal(*sizes), batch_size, is_training=True, is_balanced=True, seed=seed)


@pytest.mark.parametrize("sizes", [(90, 10), (1, 1, 98), (34, 33, 33), (5, 0, 95), (7,)])
def test_balanced_epochs_have_every_class_equally_often_and_the_same_length(sizes):
    loader = balanced(*sizes)

    seen = np.bincount(torch.cat([batch.labels for batch in loader]), minlength=len(sizes))

    assert len(loader) == seen.sum() == sum(sizes)
    present = seen[np.array(sizes) > 0]
    assert present.max() - present.min() <= 1
    assert not seen[np.array(sizes) == 0].any()


def test_a_balanced_epoch_repeats_a_rare_example_only_after_all_of_its_class():
    counts = np.bincount(rows(balanced(90, 10)), minlength=100)

    assert set(counts[:90]) == {0, 1}
    assert set(counts[90:]) == {5}
    assert set(np.bincount(rows(balanced(93, 7)), minlength=100)[93:]) == {7, 8}


def test_balanced_batches_mix_the_classes():
    shares = [batch.labels.float().mean().item() for batch in balanced(900, 100, batch_size=100)]

    assert all(0.3 < share < 0.7 for share in shares)


def test_the_balanced_order_depends_on_seed_and_epoch_only():
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            first, second = balanced(30, 10, seed=seed), balanced(30, 10, seed=seed)
            first.set_epoch(epoch)
            second.set_epoch(epoch)
            rows(first)
            torch.manual_seed(99)
            assert rows(first) == rows(second)
            orders.add(tuple(rows(first)))

    assert len(orders) == 9


def test_only_training_is_balanced():
    splits = unequal(90, 10), unequal(9, 1), unequal(9, 1)
    data = ImageDataModule(*splits, batch_size=10, seed=0, is_balanced=True)

    assert sum(batch.labels.sum().item() for batch in data.train_dataloader()) == 50
    assert rows(data.val_dataloader()) == rows(data.test_dataloader()) == list(range(10))


class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(12, 3)
        self.train_rows: list[list[int]] = []
        self.val_rows: list[int] = []
        self.test_rows: list[int] = []

    def training_step(self, batch, batch_index):
        if batch_index == 0:
            self.train_rows.append([])
        self.train_rows[-1] += batch.indices.tolist()
        loss = torch.nn.functional.cross_entropy(self.layer(batch.inputs.flatten(1).float()), batch.labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_index):
        self.val_rows += batch.indices.tolist()

    def test_step(self, batch, batch_index):
        self.test_rows += batch.indices.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def data_module(**options):
    defaults = {"batch_size": 8, "seed": 5}
    splits = examples_of(30), examples_of(13, "val"), examples_of(7, "test")
    return ImageDataModule(*splits, **(defaults | options))


def test_lightning_trains_and_evaluates_with_another_order_each_epoch(tmp_path):
    module, data = Recorder(), data_module()
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )

    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)

    expected = []
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.set_epoch(epoch)
        expected.append(rows(loader))
    assert module.train_rows == expected
    assert module.val_rows == list(range(13)) * 3
    assert module.test_rows == list(range(7))


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(UserError, match=r"dataset\.batch_size=0"):
        data_module(batch_size=0)
