from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch

from flatfix.data.cache import Examples
from flatfix.data.datamodule import BatchLoader, ImageDataModule
from flatfix.errors import UserError


def examples_of(num_pictures, split="train"):
    inputs = np.arange(num_pictures * 12, dtype=np.uint8).reshape(num_pictures, 2, 2, 3)
    labels = np.arange(num_pictures, dtype=np.int64) % 3
    return Examples(inputs, labels, [str(number) for number in range(num_pictures)], split)


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
