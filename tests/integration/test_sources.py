from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flatfix.config.instantiate import build
from flatfix.data.cache import decoded
from flatfix.data.datamodule import BatchLoader
from flatfix.data.publish import publish
from flatfix.data.splits import SPLITS, SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version
from tests.helpers.compose import CONF, compose_train
from tests.helpers.images import class_folders

CHOICES = sorted(path.stem for path in (CONF / "dataset").glob("[!_]*.yaml") if path.stem != "published")


def dataset_of(choice: str, tmp_path: Path) -> dict[str, Any]:
    words = {
        "folder": ["dataset.name=mine", f"dataset.source.root={class_folders(tmp_path / 'pictures', num_pictures=12)}"],
        "tires": ["dataset.source.num_pictures=60"],
    }
    return compose_train(tmp_path, f"dataset={choice}", *words.get(choice, []))["dataset"]


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
