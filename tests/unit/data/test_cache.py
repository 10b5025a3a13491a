from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flatfix.data.cache import Examples, counts, decoded, sample
from flatfix.data.encoded import EncodedPictures
from flatfix.data.publish import publish
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import Fold, SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import DamagedVersionError, DatasetVersion, open_version
from flatfix.errors import UserError
from flatfix.inference.decode import decode, resize
from tests.helpers.images import MemorySource, class_folders, records

SRC = Path(__file__).parents[3] / "src"


@pytest.fixture
def pictures(tmp_path):
    return class_folders(tmp_path / "pictures", num_pictures=40)


@pytest.fixture
def version(tmp_path, pictures):
    store = LocalStore(tmp_path / "store")
    publish(FolderSource(pictures), store, name="pets", version="v1", rule=SplitRule(), shard_bytes=30_000)
    return open_version(store, "pets", "v1")


def load(version, tmp_path, split="train", image_size=8, resize="squash", **options):
    return decoded(version, split, image_size=image_size, resize=resize, cache_dir=tmp_path / "cache", **options)


@pytest.mark.parametrize("rule", ["squash", "crop", "pad"])
def test_rows_are_the_decoded_pictures_with_their_labels(version, pictures, tmp_path, rule):
    examples = load(version, tmp_path, resize=rule)

    assert examples.split == "train"
    assert len(examples) == len(examples.ids) == len(examples.labels) == 48
    assert examples.inputs.dtype == np.uint8 and examples.labels.dtype == np.int64
    for pixels, label, id in zip(examples.inputs, examples.labels, examples.ids, strict=True):
        np.testing.assert_array_equal(pixels, resize(decode((pictures / f"{id}.png").read_bytes()), 8, rule))
        assert id.startswith(("cat", "dog")[label])


@pytest.mark.parametrize("num_bytes", [0, 20, 1000])
def test_a_cache_file_that_was_cut_short_is_made_anew(version, tmp_path, num_bytes):
    whole = np.array(load(version, tmp_path).inputs)
    (file,) = (tmp_path / "cache").glob("*train*.npy")
    with file.open("r+b") as damaged:
        damaged.truncate(num_bytes)
    np.testing.assert_array_equal(load(version, tmp_path).inputs, whole)
    np.testing.assert_array_equal(np.load(file), whole)


def test_the_splits_share_no_picture_and_lack_none(version, tmp_path):
    ids = [id for split in ("train", "val", "test") for id in load(version, tmp_path, split).ids]

    assert len(ids) == len(set(ids)) == 80


def test_the_second_call_neither_decodes_nor_reads_shards(version, tmp_path):
    first = load(version, tmp_path)
    for shard in version.manifest.shards:
        (tmp_path / "store/datasets/pets/v1" / shard.name).unlink()

    second = load(open_version(version.store, "pets", "v1"), tmp_path)

    np.testing.assert_array_equal(first.inputs, second.inputs)
    assert first.ids == second.ids
    with pytest.raises(DamagedVersionError, match="is missing"):
        load(open_version(version.store, "pets", "v1"), tmp_path, image_size=9)


def test_only_the_shards_of_the_split_are_read(version, tmp_path):
    index = version.index()
    of_test = {row["shard"] for row in index.to_pylist() if row["split"] == "test"}
    others = {shard.name for shard in version.manifest.shards} - of_test
    assert others
    for name in others:
        (tmp_path / "store/datasets/pets/v1" / name).unlink()

    assert len(load(version, tmp_path, "test")) == 20


def test_another_size_rule_or_split_has_a_file_of_its_own(version, tmp_path):
    load(version, tmp_path)
    load(version, tmp_path, image_size=9)
    load(version, tmp_path, resize="crop")
    load(version, tmp_path, split="val")

    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert len(names) == 4
    assert all(name.startswith(version.manifest.digest[:32]) for name in names)


def test_a_damaged_shard_builds_no_cache(version, tmp_path):
    path = tmp_path / "store/datasets/pets/v1/shard-00000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    with pytest.raises(DamagedVersionError, match="not what was published"):
        load(version, tmp_path)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_build_that_fails_half_way_leaves_no_file(version, tmp_path):
    folder = tmp_path / "store/datasets/pets/v1"
    row = [row for row in version.index().to_pylist() if row["split"] == "train"][-1]
    shard = bytearray((folder / row["shard"]).read_bytes())
    shard[row["offset"] : row["offset"] + 8] = b"no image"
    (folder / row["shard"]).write_bytes(shard)
    sha256 = hashlib.sha256(shard).hexdigest()
    shards = [replace(held, sha256=sha256) if held.name == row["shard"] else held for held in version.manifest.shards]

    with pytest.raises(DamagedVersionError, match=rf"dataset\.version=v1: {row['id']} does not decode here \(not a"):
        load(DatasetVersion(replace(version.manifest, shards=tuple(shards)), version.store), tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


# Decodes one size after another in processes, until it is told to stop.
ENDLESS = """
import itertools, sys
from pathlib import Path
from flatfix.data import encoded
from flatfix.data.cache import decoded
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version
encoded.PAYS_FOR_PROCESSES = 0
version = open_version(LocalStore(sys.argv[1]), "pets", "v1")
for size in itertools.count(8):
    decoded(version, "train", image_size=size, resize="squash", cache_dir=Path(sys.argv[2]))
"""


def test_ctrl_c_leaves_no_half_written_file_and_no_process(version, tmp_path):
    cache = tmp_path / "cache"
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(version.store.root), str(cache)],
        env={**os.environ, "PYTHONPATH": str(SRC), "MARK": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        assert child.stdout and child.stderr
        for number, line in enumerate(iter(child.stdout.readline, b""), 1):
            assert line.startswith(b"Decoding train: 48 pictures")
            if number == 3:
                break
        os.killpg(child.pid, signal.SIGINT)
        _, complaints = child.communicate(timeout=60)

    assert child.returncode == -signal.SIGINT
    assert complaints.rstrip().endswith(b"KeyboardInterrupt")
    assert complaints.count(b"KeyboardInterrupt") == 1  # not of the processes
    sizes = sorted(np.load(path).shape[1] for path in cache.iterdir())
    assert sizes == list(range(8, 8 + len(sizes))) and len(sizes) >= 2
    deadline = time.monotonic() + 30
    while any(is_marked(process, tmp_path) for process in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_marked(process, mark):
    try:
        return f"MARK={mark}".encode() in (process / "environ").read_bytes()
    except OSError:  # it has ended
        return False


def test_pixels_are_mapped_and_changing_them_does_not_change_the_file(version, tmp_path):
    examples = load(version, tmp_path)
    before = examples.inputs[0].copy()
    examples.inputs[0] = 0

    assert isinstance(examples.inputs, np.memmap)
    np.testing.assert_array_equal(load(version, tmp_path).inputs[0], before)


@pytest.mark.parametrize("gigabytes", [None, 0])
def test_an_empty_split_has_no_rows(tmp_path, pictures, gigabytes):
    store = LocalStore(tmp_path / "store")
    publish(FolderSource(pictures), store, name="pets", version="v1", rule=SplitRule(val_fraction=0))

    examples = load(open_version(store, "pets", "v1"), tmp_path, "val", gigabytes=gigabytes)

    assert len(examples) == 0
    assert examples.inputs.shape == (0, 8, 8, 3)


def test_a_split_that_takes_more_than_it_may_stays_encoded(version, tmp_path, capsys):
    num_gigabytes = 48 * 8 * 8 * 3 / 1e9
    streamed = load(version, tmp_path, gigabytes=num_gigabytes * 0.99)

    assert isinstance(streamed.inputs, EncodedPictures)
    assert "train: decoded when read, for its pixels take " in capsys.readouterr().out
    assert list((tmp_path / "cache").iterdir()) == []

    mapped = load(version, tmp_path, gigabytes=num_gigabytes)
    assert isinstance(mapped.inputs, np.memmap)
    assert streamed.ids == mapped.ids
    np.testing.assert_array_equal(streamed.labels, mapped.labels)
    np.testing.assert_array_equal(streamed.inputs[:], mapped.inputs)
    assert isinstance(load(version, tmp_path, gigabytes=0).inputs, np.memmap)  # it is there already


def test_a_part_of_pictures_that_stay_encoded_is_the_part_of_the_decoded_ones(version, tmp_path):
    streamed, mapped = sample(load(version, tmp_path, gigabytes=0), 0.3, 1), sample(load(version, tmp_path), 0.3, 1)

    assert isinstance(streamed.inputs, EncodedPictures)
    assert streamed.ids == mapped.ids
    np.testing.assert_array_equal(streamed.inputs[:], mapped.inputs)


def publish_all(tmp_path, some, name="v1", rule=None):
    store = LocalStore(tmp_path / "store")
    publish(MemorySource(some), store, name="memory", version=name, rule=rule or SplitRule())
    return open_version(store, "memory", name)


def test_folds_divide_train_and_val_anew_and_leave_test_alone(version, pictures, tmp_path):
    plain = {split: load(version, tmp_path, split) for split in ("train", "val", "test")}
    divided = {*plain["train"].ids, *plain["val"].ids}
    seen = []
    for index in range(3):
        train, val, test = (load(version, tmp_path, split, fold=Fold(index, 3)) for split in ("train", "val", "test"))
        assert {*train.ids, *val.ids} == divided and len(train) + len(val) == len(divided)
        assert abs(Counter(val.labels.tolist())[0] - len(val) / 2) <= 1
        assert test.ids == plain["test"].ids
        for examples in (train, val):
            assert examples.inputs.shape[0] == len(examples)
            for pixels, label, id in zip(examples.inputs, examples.labels, examples.ids, strict=True):
                np.testing.assert_array_equal(
                    pixels, resize(decode((pictures / f"{id}.png").read_bytes()), 8, "squash")
                )
                assert id.startswith(("cat", "dog")[label])
        seen += val.ids
    assert sorted(seen) == sorted(divided)


def test_every_fold_has_a_file_of_its_own_and_test_has_one_in_all(version, tmp_path):
    for fold in (None, Fold(0, 3), Fold(1, 3), Fold(1, 4)):
        for split in ("train", "val", "test"):
            load(version, tmp_path, split, fold=fold)

    names = [path.name for path in (tmp_path / "cache").iterdir()]
    assert len(names) == 2 * 4 + 1
    assert sum("fold-1-of-3" in name for name in names) == 2


def test_a_fold_is_the_same_whatever_the_order_of_the_index_and_another_with_another_seed(tmp_path):
    some = [replace(record, split="test" if number % 5 == 0 else "train") for number, record in enumerate(records(60))]
    shuffled = random.Random(0).sample(some, len(some))
    rule = SplitRule(val_fraction=0)
    first = publish_all(tmp_path, some, rule=rule)
    second = publish_all(tmp_path, shuffled, "v2", rule)
    other = publish_all(tmp_path, some, "v3", SplitRule(val_fraction=0, seed=1))
    ids = [load(version, tmp_path, "val", fold=Fold(0, 4)).ids for version in (first, second, other)]

    assert first.manifest.digest == other.manifest.digest
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 12


def test_folds_keep_groups_together_unless_the_version_stratifies_by_them(tmp_path):
    some = [replace(record, group=f"tire {number // 4}") for number, record in enumerate(records(120))]
    group_of = {record.id: record.group for record in some}

    def num_shared(version):
        train, val = (load(version, tmp_path, split, fold=Fold(1, 3)) for split in ("train", "val"))
        return len({group_of[id] for id in train.ids} & {group_of[id] for id in val.ids})

    assert num_shared(publish_all(tmp_path, some)) == 0
    assert num_shared(publish_all(tmp_path, some, "v2", SplitRule(groups="stratify"))) > 0


def test_counts_are_those_of_the_manifest_or_of_the_fold(version, tmp_path):
    assert counts(version) == version.manifest.splits
    of_fold = counts(version, Fold(0, 3))

    assert of_fold == {
        "train": {"cat": 20, "dog": 20},
        "val": {"cat": 10, "dog": 10},
        "test": version.manifest.splits["test"],
    }
    for split in ("train", "val", "test"):
        labels = load(version, tmp_path, split, fold=Fold(0, 3)).labels
        assert np.bincount(labels).tolist() == list(of_fold[split].values())


def test_too_many_folds_are_refused_before_anything_is_decoded(version, tmp_path):
    with pytest.raises(UserError, match=r"dataset\.num_folds=31: .* class cat reach 30 folds only"):
        load(version, tmp_path, fold=Fold(0, 31))
    assert not (tmp_path / "cache").exists()


def test_soft_labels_come_with_their_pictures(tmp_path):
    some = [replace(record, target=(number / 100, 1 - number / 100)) for number, record in enumerate(records(40))]
    target_of = {record.id: record.target for record in some}

    for fold in (None, Fold(0, 2)):
        examples = load(publish_all(tmp_path, some), tmp_path, fold=fold)
        assert (examples.targets.dtype, examples.targets.shape) == (np.float32, (len(examples), 2))
        np.testing.assert_allclose(examples.targets, [target_of[id] for id in examples.ids], rtol=1e-6)
        part = sample(examples, 0.5, seed=0)
        np.testing.assert_allclose(part.targets, [target_of[id] for id in part.ids], rtol=1e-6)


def test_a_split_in_which_one_picture_lacks_a_soft_label_has_none(tmp_path):
    some = [
        replace(record, target=(0.5, 0.5), split="train" if n % 2 else "test") for n, record in enumerate(records())
    ]
    version = publish_all(tmp_path, [replace(some[0], target=None), *some[1:]], rule=SplitRule(val_fraction=0))

    assert load(version, tmp_path, "test").targets is None
    assert load(version, tmp_path, "val").targets is None
    assert load(version, tmp_path, "train").targets.shape == (20, 2)


def test_wrong_options_are_refused(version, tmp_path):
    with pytest.raises(UserError, match=r"dataset\.resize=stretch"):
        load(version, tmp_path, resize="stretch")
    with pytest.raises(UserError, match=r"dataset\.image_size=0"):
        load(version, tmp_path, image_size=0)
    with pytest.raises(UserError, match="split=training.*Did you mean 'train'"):
        load(version, tmp_path, split="training")


def examples_of(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    inputs = np.arange(len(labels), dtype=np.float32)[:, None]
    return Examples(inputs, labels, [f"id-{row}" for row in range(len(labels))], "train")


def test_select_keeps_rows_together():
    chosen = examples_of([3, 3]).select([4, 1])

    assert chosen.inputs.tolist() == [[4.0], [1.0]]
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.ids == ["id-4", "id-1"]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.75])
def test_a_sample_has_the_same_share_of_every_class(fraction):
    part = sample(examples_of([200, 40, 400]), fraction, seed=0)

    counts = np.bincount(part.labels)
    np.testing.assert_allclose(counts, np.array([200, 40, 400]) * fraction, atol=1)
    assert part.ids == [f"id-{int(row)}" for row in part.inputs[:, 0]]


def test_a_sample_depends_on_the_seed_alone():
    some = examples_of([50, 50])

    assert sample(some, 0.5, 1).ids == sample(some, 0.5, 1).ids
    assert sample(some, 0.5, 1).ids != sample(some, 0.5, 2).ids
    assert set(sample(some, 0.2, 1).ids) < set(sample(some, 0.5, 1).ids)


def test_a_sample_of_everything_is_everything():
    some = examples_of([5, 5])

    assert sample(some, 1.0, 0) is some


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(UserError, match=r"dataset\.sample_fraction="):
        sample(examples_of([5, 5]), fraction, 0)


def test_a_sample_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match="leaves none of 2 pictures"):
        sample(examples_of([1, 1]), 0.01, 0)
