from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from flatfix.data import datamodule
from flatfix.data.cache import Examples, decoded
from flatfix.data.datamodule import BatchLoader, ImageDataModule
from flatfix.data.publish import publish
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version
from flatfix.errors import UserError
from tests.helpers.images import MemorySource, records


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


@pytest.mark.parametrize("is_balanced", [False, True])
def test_examples_kept_on_a_device_come_from_there_in_the_same_order(is_balanced):
    examples = examples_of(20, targets=np.ones((20, 3), np.float32))
    options = {"is_training": True, "is_balanced": is_balanced, "seed": 1}
    here = list(BatchLoader(examples, 6, **options))
    named = list(BatchLoader(examples, 6, device=torch.device("cpu"), **options))
    there = list(BatchLoader(examples, 6, device=torch.device("meta"), **options))

    for one, other, far in zip(here, named, there, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
        assert {column.device.type for column in far} == {"meta"}
        assert [(column.shape, column.dtype) for column in far] == [(column.shape, column.dtype) for column in one]


@pytest.mark.gpu
def test_a_gpu_keeps_the_training_pictures_that_it_has_room_for_and_no_others(kinds, tmp_path, monkeypatch):
    def devices(train):
        data = ImageDataModule(train, examples_of(13, "val"), examples_of(7, "test"), batch_size=8, seed=5)
        data.trainer = L.Trainer(accelerator="gpu", devices=1, logger=False, enable_checkpointing=False)
        loaders = data.train_dataloader(), data.val_dataloader()
        return [next(iter(loader)).inputs.device.type for loader in loaders]

    assert devices(examples_of(30)) == ["cuda", "cpu"]
    assert devices(kinds["streamed"]) == ["cpu", "cpu"]
    monkeypatch.setattr(datamodule, "PART_OF_GPU", 0)
    assert devices(examples_of(30)) == ["cpu", "cpu"]


def test_features_are_batched_like_pictures():
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    loader = BatchLoader(Examples(features, np.zeros(6, dtype=np.int64), list("abcdef"), "val"), 4, is_training=False)

    assert [batch.inputs.shape for batch in loader] == [(4, 2), (2, 2)]


@pytest.mark.parametrize("targets", [None, np.full((4, 2), 0.5, np.float32)])
def test_a_batch_moves_to_the_device_whole_and_one_that_is_there_stays(targets):
    data = ImageDataModule(*[examples_of(4, targets=targets)] * 3, batch_size=4, seed=0)
    batch, elsewhere = next(iter(data.val_dataloader())), torch.device("meta")

    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    moved = data.transfer_batch_to_device(batch, elsewhere, 0)
    assert [each is None or each.device == elsewhere for each in moved] == [True] * 4
    assert (moved.targets is None) == (targets is None)


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


NUM_STREAMED = 120


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """The same 120 pictures of two classes, a quarter of them cats, once decoded and once in about 15 shards."""
    folder = tmp_path_factory.mktemp("kinds")
    store = LocalStore(folder / "store")
    some = [*records(NUM_STREAMED // 2, ("dog", "dog")), *records(NUM_STREAMED // 2, ("cat", "dog"))]
    some = [replace(record, id=f"{number}", location=f"{number}") for number, record in enumerate(some)]
    rule = SplitRule(val_fraction=0, test_fraction=0)
    publish(MemorySource(some), store, name="pets", version="v1", rule=rule, shard_bytes=20_000)
    version = open_version(store, "pets", "v1")
    options = {"image_size": 8, "resize": "squash", "cache_dir": folder / "cache"}
    streamed = decoded(version, "train", **options, gigabytes=0)
    assert len(set(streamed.inputs.shards)) > 12
    return {"streamed": streamed, "decoded": decoded(version, "train", **options)}


def test_streamed_batches_are_those_of_decoded_pictures_in_another_order(kinds):
    decoded = kinds["decoded"]
    for is_training in (True, False):
        loader = BatchLoader(kinds["streamed"], 10, is_training=is_training)
        for batch in loader:
            np.testing.assert_array_equal(batch.inputs, decoded.inputs[batch.indices])
            np.testing.assert_array_equal(batch.labels, decoded.labels[batch.indices])
            assert batch.inputs.dtype == torch.uint8
            batch.inputs.zero_()
        assert (rows(loader) == list(range(NUM_STREAMED))) == (not is_training)
        assert sorted(rows(loader)) == list(range(NUM_STREAMED))


def test_what_is_streamed_is_mixed_among_a_few_shards_that_are_other_ones_every_epoch(kinds):
    shards = kinds["streamed"].inputs.shards
    loader = BatchLoader(kinds["streamed"], 1, is_training=True)
    mixed = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        windows = []
        of_row = [int(shards[row]) for row in rows(loader)]
        while of_row:
            window = list(dict.fromkeys(of_row))[: datamodule.WINDOW]
            size = sum(np.isin(shards, window))
            assert set(of_row[:size]) == set(window)  # all of these shards, before any other
            assert of_row[:size] != sorted(of_row[:size], key=window.index)
            windows.append(frozenset(window))
            del of_row[:size]
        mixed.append(tuple(windows))
    assert len(set(mixed)) == 3


def test_a_version_of_few_shards_is_streamed_in_the_order_of_decoded_pictures(kinds, monkeypatch):
    monkeypatch.setattr(datamodule, "WINDOW", len(set(kinds["streamed"].inputs.shards)))
    for is_balanced in (False, True):
        streamed, decoded = (
            BatchLoader(examples, 10, is_training=True, is_balanced=is_balanced, seed=3) for examples in kinds.values()
        )
        assert rows(streamed) == rows(decoded)


def test_what_is_streamed_can_be_balanced(kinds):
    loader = BatchLoader(kinds["streamed"], 10, is_training=True, is_balanced=True)

    assert torch.bincount(torch.cat([batch.labels for batch in loader])).tolist() == [60, 60]
    assert kinds["streamed"].labels.sum() == 90


KINDS = pytest.mark.parametrize("kind", ["decoded", "streamed"])


@KINDS
@pytest.mark.parametrize("is_balanced", [False, True])
@pytest.mark.parametrize("num_batches", [0, 1, 7, 11, 12])
def test_the_state_of_an_epoch_leads_to_the_rest_of_it_and_to_whole_ones_after_it(
    kinds, kind, is_balanced, num_batches
):
    first, second = (BatchLoader(kinds[kind], 10, is_training=True, is_balanced=is_balanced, seed=2) for _ in range(2))
    first.set_epoch(3)
    batches = iter(first)
    for _ in range(num_batches):
        next(batches)
    second.load_state_dict(first.state_dict())
    second.set_epoch(3)  # as Lightning does

    rest = list(second)
    expected = list(batches)

    assert len(rest) == len(expected) == 12 - num_batches and len(second) == 12
    for ours, theirs in zip(rest, expected, strict=True):
        assert torch.equal(ours.indices, theirs.indices) and torch.equal(ours.inputs, theirs.inputs)
    assert second.state_dict() == first.state_dict()
    assert place(second) == (3, 12)
    assert rows(second) == rows(first)
    second.set_epoch(4)
    first.set_epoch(4)
    assert place(second) == (4, 0)
    assert rows(second) == rows(first)


def place(loader: BatchLoader) -> tuple[int, int]:
    state = loader.state_dict()
    return state["epoch"], state["num_batches"]


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("streamed", {"batch_size": 20}, "dataset.batch_size=20: the epoch to go on with began with 10"),
        ("streamed", {"num_ranks": 2}, "number of devices=2"),
        ("streamed", {"seed": 3}, "seed=3"),
        ("decoded", {}, "dataset.decoded_gigabytes"),
    ],
)
def test_an_epoch_does_not_go_on_in_another_order(kinds, kind, options, named):
    begun = BatchLoader(kinds["streamed"], 10, is_training=True, seed=2)
    next(iter(begun))
    loader = BatchLoader(kinds[kind], **({"batch_size": 10, "is_training": True, "seed": 2} | options))

    with pytest.raises(UserError, match=named):
        loader.load_state_dict(begun.state_dict())


def test_the_state_of_another_epoch_says_nothing_about_this_one():
    loader = training()
    loader.load_state_dict(loader.state_dict() | {"epoch": 2, "num_batches": 10})
    loader.set_epoch(3)

    assert len(list(loader)) == 10


def test_what_was_handed_out_is_not_read_again(kinds, tmp_path):
    streamed = kinds["streamed"]
    loader = BatchLoader(streamed, 10, is_training=True, seed=1)
    (*_, last) = loader
    needed = {streamed.inputs.version.manifest.shards[shard].name for shard in streamed.inputs.shards[last.indices]}
    root = Path(shutil.copytree(streamed.inputs.version.store.root, tmp_path / "store"))
    others = [path for path in root.rglob("*.tar") if path.name not in needed]
    assert others
    for path in others:
        path.unlink()
    version = open_version(LocalStore(root), "pets", "v1")
    resumed = BatchLoader(
        replace(streamed, inputs=replace(streamed.inputs, version=version)), 10, is_training=True, seed=1
    )
    resumed.load_state_dict(loader.state_dict() | {"num_batches": 11})

    (batch,) = resumed
    assert torch.equal(batch.inputs, last.inputs)


def of_ranks(examples, batch_size, num_ranks, **options):
    return [BatchLoader(examples, batch_size, rank=rank, num_ranks=num_ranks, **options) for rank in range(num_ranks)]


@pytest.mark.parametrize(
    ("num_pictures", "batch_size", "num_ranks"), [(100, 10, 2), (103, 10, 4), (41, 7, 3), (9, 8, 4), (3, 1, 3)]
)
def test_ranks_train_together_on_the_batches_of_one_whose_batches_are_larger(num_pictures, batch_size, num_ranks):
    examples = examples_of(num_pictures)
    parts = of_ranks(examples, batch_size, num_ranks, is_training=True, seed=4)
    together = [[batch.indices.tolist() for batch in batches] for batches in zip(*parts, strict=True)]

    size = min(batch_size, num_pictures // num_ranks)
    assert {len(rows) for batches in together for rows in batches} == {size}
    alone = BatchLoader(examples, size * num_ranks, is_training=True, seed=4)
    assert [sum(batches, []) for batches in together] == [batch.indices.tolist() for batch in alone]


@pytest.mark.parametrize(
    ("num_pictures", "batch_size", "num_ranks"),
    [(20, 5, 2), (23, 5, 2), (21, 10, 2), (11, 5, 2), (9, 4, 4), (3, 1, 2), (1, 4, 2), (0, 4, 2)],
)
def test_ranks_evaluate_every_picture_once_with_equally_many_batches(num_pictures, batch_size, num_ranks):
    parts = of_ranks(examples_of(num_pictures), batch_size, num_ranks, is_training=False)
    batches = [list(part) for part in parts]

    assert {len(each) for each in batches} == {len(parts[0])}
    assert max([0, *(len(batch.indices) for each in batches for batch in each)]) <= batch_size
    assert [row for each in batches for batch in each for row in batch.indices.tolist()] == list(range(num_pictures))


def test_ranks_share_what_is_streamed_window_by_window(kinds):
    parts = of_ranks(kinds["streamed"], 5, 2, is_training=True)

    assert sorted(row for part in parts for row in rows(part)) == list(range(NUM_STREAMED))
    for batches in zip(*parts, strict=True):
        shards = kinds["streamed"].inputs.shards[torch.cat([batch.indices for batch in batches])]
        assert len(set(shards.tolist())) <= 2 * datamodule.WINDOW  # those of a window, or of two where one ends


def test_more_ranks_than_training_pictures_are_refused():
    with pytest.raises(UserError, match="4 devices are too many for 3 training pictures"):
        of_ranks(examples_of(3), 2, 4, is_training=True)


class Recorder(L.LightningModule):
    def __init__(self, num_inputs=12):
        super().__init__()
        self.layer = torch.nn.Linear(num_inputs, 3)
        self.train_rows: list[list[int]] = []
        self.val_rows: list[int] = []
        self.test_rows: list[int] = []

    def training_step(self, batch, batch_index):
        if batch_index == 0 or not self.train_rows:
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


def trainer_of(folder, **options):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing="callbacks" in options,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


def test_lightning_trains_and_evaluates_with_another_order_each_epoch(tmp_path):
    module, data = Recorder(), data_module()
    trainer = trainer_of(tmp_path, max_epochs=3)

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


class Killed(Exception):
    pass


class Mortal(Recorder):
    """Die before the step `at` of (epoch, batch)."""

    def __init__(self, num_inputs, at):
        super().__init__(num_inputs)
        self.at = at

    def training_step(self, batch, batch_index):
        if (self.current_epoch, batch_index) == self.at:
            raise Killed
        return super().training_step(batch, batch_index)


@KINDS
@pytest.mark.parametrize("at", [(0, 4), (1, 1), (1, 11), (2, 0)])
def test_lightning_goes_on_within_an_epoch_with_the_batches_that_are_left(kinds, kind, at, tmp_path):
    def fit(module, folder, **options):
        data = ImageDataModule(kinds[kind], examples_8(13, "val"), examples_8(7, "test"), batch_size=10, seed=5)
        save = ModelCheckpoint(tmp_path / folder, "last", every_n_train_steps=1, enable_version_counter=False)
        trainer_of(tmp_path, max_epochs=3, callbacks=[save]).fit(module, datamodule=data, **options)
        return sum(module.train_rows, [])

    whole = fit(Recorder(8 * 8 * 3), "whole")
    mortal = Mortal(8 * 8 * 3, at)
    with pytest.raises(Killed):
        fit(mortal, "mortal")
    before = sum(mortal.train_rows, [])
    after = fit(Recorder(8 * 8 * 3), "resumed", ckpt_path=tmp_path / "mortal/last.ckpt")

    assert len(before) == 10 * (12 * at[0] + at[1])
    assert before + after == whole


def examples_8(num_pictures, split):
    pixels = np.zeros((num_pictures, 8, 8, 3), np.uint8)
    return Examples(pixels, np.zeros(num_pictures, np.int64), [str(number) for number in range(num_pictures)], split)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(UserError, match=r"dataset\.batch_size=0"):
        data_module(batch_size=0)
