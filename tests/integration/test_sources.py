from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatfix.config.instantiate import build
from flatfix.data.cache import decoded
from flatfix.data.datamodule import BatchLoader
from flatfix.data.publish import publish
from flatfix.data.splits import SPLITS, Fold, SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import DatasetVersion, open_version
from tests.helpers.compose import CONF, compose_train
from tests.helpers.images import class_folders
from tests.helpers.shared_data import shared_pictures

CHOICES = sorted(path.stem for path in (CONF / "dataset").glob("[!_]*.yaml") if path.stem != "published")


def dataset_of(choice: str, tmp_path: Path) -> dict[str, Any]:
    root = tmp_path / "pictures"
    words = {"tires": ["dataset.source.num_pictures=60"]}
    if choice in ("annotations", "csv", "folder"):
        class_folders(root, num_pictures=12)
        words[choice] = ["dataset.name=mine", f"dataset.source.root={root}"]
    if choice == "annotations":
        words[choice].append(f"dataset.source.file={annotate(root, tmp_path / 'labels.json')}")
    if choice == "csv":
        words[choice].append(f"dataset.source.file={tabulate(root, tmp_path / 'labels.csv')}")
    if choice == "cifar10":
        class_folders(root, num_pictures=12, splits=("train", "test"))
        words[choice] = [f"dataset.source.root={root}"]
    return compose_train(tmp_path, f"dataset={choice}", *words.get(choice, []))["dataset"]


def pictures(root: Path) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.rglob("*.*") if path.is_file())


def annotate(root: Path, file: Path) -> Path:
    data = [{"FilePath": str(path), "label_value": path.parent.name} for path in pictures(root)]
    file.write_text(json.dumps({"annotation": {"data": data}}), encoding="utf-8")
    return file


def tabulate(root: Path, file: Path) -> Path:
    with file.open("w", newline="", encoding="utf-8") as table:
        rows = [(path, path.parent.name, *path.parts[:-2]) for path in pictures(root)]
        csv.writer(table).writerows([("path", "label", "split")[: len(rows[0])], *rows])
    return file


def published(tmp_path: Path, name: str, *words: str) -> DatasetVersion:
    """Publish what the words choose, as `train.py` would."""
    dataset = compose_train(tmp_path, f"dataset.name={name}", *words)["dataset"]
    store = LocalStore(tmp_path / "store")
    publish(
        build(dataset["source"], "dataset.source"), store, name=name, version="v1", rule=SplitRule(**dataset["split"])
    )
    return open_version(store, name, "v1")


@pytest.mark.parametrize("choice", CHOICES)
def test_every_source_publishes_and_loads_every_picture_with_its_label(choice: str, tmp_path: Path) -> None:
    dataset = dataset_of(choice, tmp_path)
    source, store = build(dataset["source"], "dataset.source"), LocalStore(tmp_path / "store")
    rule = SplitRule(**dataset["split"])
    manifest = publish(source, store, name=dataset["name"], version="v1", rule=rule)
    version = open_version(store, dataset["name"], "v1")
    labels = {record.id: record.label for record in source.records()}
    seen: list[str] = []
    for split in SPLITS:
        examples = decoded(version, split, image_size=16, resize="squash", cache_dir=tmp_path / "cache")
        assert len(examples) == manifest.num(split) > 0
        assert [labels[id] for id in examples.ids] == [manifest.classes[label] for label in examples.labels]
        for batch in BatchLoader(examples, 50, is_training=False):
            assert batch.inputs.shape[1:] == (16, 16, 3)
            seen += [examples.ids[index] for index in batch.indices]
    assert sorted(seen) == sorted(labels)
    assert version.index().num_rows == len(labels)


def test_elpv_keeps_its_probabilities_and_gives_each_split_both_kinds_of_cell(tmp_path: Path) -> None:
    dataset = dataset_of("elpv", tmp_path)
    source, store = build(dataset["source"], "dataset.source"), LocalStore(tmp_path / "store")
    publish(source, store, name="elpv", version="v1", rule=SplitRule(**dataset["split"]))
    index = open_version(store, "elpv", "v1").index().to_pylist()
    assert sum(row["label"] == "defective" for row in index) == 821
    assert {round(row["target"][1], 2) for row in index} == {0.0, 0.33, 0.67, 1.0}
    for split in SPLITS:
        rows = [row for row in index if row["split"] == split]
        mono = sum(row["group"] == "mono" for row in rows) / len(rows)
        assert mono == pytest.approx(1074 / 2624, abs=0.01)


def test_photographs_of_tires_in_three_folders_are_published_as_they_are(tmp_path: Path) -> None:
    root = shared_pictures("tires_flat_full", tmp_path)
    version = published(tmp_path, "tires", "dataset=folder", f"dataset.source.root={root}")
    assert version.manifest.classes == ("flat.class", "full.class", "no-tire.class")
    assert version.manifest.splits == {
        split: dict.fromkeys(version.manifest.classes, count)
        for split, count in (("train", 180), ("val", 45), ("test", 75))
    }
    (finding,) = version.manifest.findings  # many are taken one after another of the same tire
    assert finding.startswith("pairs of pictures that look alike, ")
    for index in (0, 4):
        val = decoded(version, "val", image_size=24, resize="crop", cache_dir=tmp_path / "cache", fold=Fold(index, 5))
        assert val.inputs.shape == (135, 24, 24, 3)
        assert np.bincount(val.labels).tolist() == [45, 45, 45]


def cifar10_from_a_listing(root: Path, tmp_path: Path, per_class: int) -> None:
    """Compare what annotations, a table and the folder itself make of the same pictures."""
    words = [f"dataset.source.root={root}", "dataset.split.val_fraction=0.1"]
    file = annotate(root, tmp_path / "labels.json")
    version = published(tmp_path, "annotated", "dataset=annotations", f"dataset.source.file={file}", *words)
    index = version.index().to_pylist()
    assert Counter(row["label"] for row in index) == dict.fromkeys(version.manifest.classes, per_class)
    assert len(version.manifest.classes) == 10
    assert all(row["id"].split("/")[1] == row["label"] for row in index)
    assert abs(version.manifest.num("test") - 0.25 * 10 * per_class) <= 1
    file = tabulate(root, tmp_path / "labels.csv")
    table = published(tmp_path, "table", "dataset=csv", f"dataset.source.file={file}", *words)
    folder = published(tmp_path, "folder", "dataset=cifar10", *words)
    assert table.manifest.digest == folder.manifest.digest != version.manifest.digest
    assert table.manifest.num("test") == folder.manifest.num("test") == len(pictures(root / "test"))


def test_cifar10_is_published_from_annotations_from_a_table_and_from_its_folder(tmp_path: Path) -> None:
    cifar10_from_a_listing(shared_pictures("cifar10", tmp_path, per_folder=20), tmp_path, per_class=40)


@pytest.mark.slow
def test_all_of_cifar10_is_published_from_annotations_from_a_table_and_from_its_folder(tmp_path: Path) -> None:
    cifar10_from_a_listing(shared_pictures("cifar10", tmp_path), tmp_path, per_class=6000)


def test_grey_pictures_of_mixed_sizes_and_depths_are_published_without_a_word(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    levels = {}
    for label, level in (("dark", 60), ("bright", 200)):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(70):
            height, width = rng.integers(5, 400, 2)
            grey = rng.integers(level - 20, level + 20, (height, width)).astype(np.uint8)
            depth, extension = (grey, grey.astype(np.uint16) * 257)[number % 2], ("png", "tif", "tiff")[number % 3]
            Image.fromarray(depth).save(tmp_path / "pictures" / label / f"{number}.{extension}")
            levels[f"{label}/{number}"] = grey.mean()
    version = published(tmp_path, "grey", "dataset=folder", f"dataset.source.root={tmp_path / 'pictures'}")
    assert version.manifest.classes == ("bright", "dark")
    assert version.manifest.findings == ()
    for split in SPLITS:
        examples = decoded(version, split, image_size=32, resize="squash", cache_dir=tmp_path / "cache")
        assert len(examples) > 0
        for pixels, id in zip(examples.inputs, examples.ids, strict=True):
            assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
            assert pixels.mean() == pytest.approx(levels[id], abs=4)
