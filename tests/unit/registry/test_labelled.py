from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flatfix.data.publish import publish
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import DatasetVersion, open_version
from flatfix.errors import UserError
from flatfix.inference.card import Card
from flatfix.registry.labelled import LabelledPictures, of_files, of_version
from tests.helpers.cards import make_card
from tests.helpers.images import class_folders


def card(*classes: str) -> Card:
    return make_card(classes=classes)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """Thirty cats and ten dogs, half of them in test."""
    folder = tmp_path_factory.mktemp("pets")
    class_folders(folder / "pictures", num_pictures=30)
    for dog in sorted((folder / "pictures/dog").iterdir())[10:]:
        dog.unlink()
    store = LocalStore(folder / "store")
    rule = SplitRule(val_fraction=0.1, test_fraction=0.5)
    publish(FolderSource(folder / "pictures"), store, name="pets", version="v1", rule=rule)
    return open_version(store, "pets", "v1")


def read(pictures: LabelledPictures) -> np.ndarray:
    return np.stack([picture for picture in pictures.each() if isinstance(picture, np.ndarray)])


def names(pictures: LabelledPictures, *classes: str) -> list[str]:
    """Return what the pictures are labelled, which is what their ids begin with."""
    return [classes[label] for label in pictures.labels]


@pytest.mark.parametrize("classes", [("cat", "dog"), ("dog", "cat"), ("bird", "cat", "dog")])
def test_labels_are_the_models_own_whatever_order_the_dataset_has(
    dataset: DatasetVersion, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    pictures = of_version(dataset, "test", card(*classes), tmp_path)
    assert len(pictures) == 20 and pictures.is_whole
    assert names(pictures, *classes) == [id.partition("/")[0] for id in pictures.ids]


def test_encoded_and_decoded_pictures_are_the_same(dataset: DatasetVersion, tmp_path: Path) -> None:
    encoded = of_version(dataset, "test", card("cat", "dog"), tmp_path, gigabytes=0)
    decoded = of_version(dataset, "test", card("cat", "dog"), tmp_path)
    assert not isinstance(encoded.pixels, np.ndarray) and isinstance(decoded.pixels, np.ndarray)
    np.testing.assert_array_equal(read(encoded), read(decoded))
    some = [7, 2]
    np.testing.assert_array_equal(read(encoded.select(some)), decoded.pixels[some])
    assert encoded.select(some).ids == [decoded.ids[7], decoded.ids[2]]


def test_a_limit_keeps_a_seeded_share_of_every_class(dataset: DatasetVersion, tmp_path: Path) -> None:
    pictures = of_version(dataset, "test", card("cat", "dog"), tmp_path)
    some = pictures.limited(8, seed=0)
    assert sorted(names(some, "cat", "dog")) == ["cat"] * 6 + ["dog"] * 2
    assert not some.is_whole and some.facts["limit"] == "8 of 20, seed 0"
    assert some.ids == pictures.limited(8, seed=0).ids != pictures.limited(8, seed=1).ids
    assert len(pictures.limited(1, seed=0)) == 1
    assert pictures.limited(20, seed=0) is pictures is pictures.limited(None, seed=0)


def test_files_are_read_where_they_can_be(tmp_path: Path) -> None:
    class_folders(tmp_path, ["dog", "cat"], num_pictures=3)
    (tmp_path / "cat/001.png").write_bytes(b"nothing")
    pictures = of_files(str(tmp_path), card("dog", "cat"))
    assert names(pictures, "dog", "cat") == ["cat"] * 3 + ["dog"] * 3
    assert not pictures.is_whole
    seen = list(pictures.each())
    assert [row for row, picture in enumerate(seen) if isinstance(picture, str)] == [1]
    assert str(seen[1]).startswith("not a picture")
    readable = pictures.select([0, 2, 3, 4, 5])
    np.testing.assert_array_equal(readable.pixels[np.array([4, 1])], read(readable)[[4, 1]])


def test_a_class_that_the_model_does_not_know_is_named(dataset: DatasetVersion, tmp_path: Path) -> None:
    message = r"has pictures of dog, which the model does not know\. It knows cat, dogs\. Did you mean 'dogs'\?"
    with pytest.raises(UserError, match=rf"dataset\.version=v1: {message}"):
        of_version(dataset, "test", card("cat", "dogs"), tmp_path)
    class_folders(tmp_path / "new", ["dog"], num_pictures=1)
    with pytest.raises(UserError, match=rf"data={tmp_path}/new: {message}"):
        of_files(f"{tmp_path}/new", card("cat", "dogs"))
