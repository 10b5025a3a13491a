from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flatfix.errors import UserError
from flatfix.inference.package import (
    CARD,
    CONFIG,
    MODEL,
    REFERENCE,
    WEIGHTS,
    DamagedPackageError,
    Reference,
    open_package,
    save_reference,
)
from tests.unit.inference import test_card

IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
LOGITS = np.array([[1, 2], [4, 3]], dtype=np.float32)
PROFILE = {"profile_brightness": np.array([0.25, 0.5], dtype=np.float32)}


def lay(folder: Path, **changes) -> Path:
    """Write a package whose model nobody runs."""
    folder.mkdir()
    for name in (MODEL, WEIGHTS, CONFIG):
        (folder / name).write_bytes(name.encode() * 10)
    save_reference(folder / REFERENCE, Reference(IMAGES, LOGITS), PROFILE)
    seal(folder, **changes)
    return folder


def seal(folder: Path, **changes) -> None:
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (MODEL, REFERENCE, WEIGHTS, CONFIG)
    }
    (folder / CARD).write_bytes(replace(test_card.CARD, files=files, **changes).to_json())


def as_mlflow_lays_it(folder: Path) -> None:
    beside = folder / "extra_files"
    beside.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\n")
    for name in (CARD, REFERENCE, WEIGHTS, CONFIG):
        (folder / name).rename(beside / name)


def test_a_package_opens_with_its_card_and_its_files(tmp_path):
    folder = lay(tmp_path / "package")
    package = open_package(folder)

    assert package.card.model_name == test_card.CARD.model_name
    assert package.digest == hashlib.sha256((folder / CARD).read_bytes()).hexdigest()
    assert package.path(MODEL) == folder / MODEL
    assert package.num_bytes == sum(file.stat().st_size for file in folder.iterdir())


def test_a_package_opens_as_mlflow_lays_it(tmp_path):
    folder = lay(tmp_path / "package")
    before = open_package(folder)
    as_mlflow_lays_it(folder)
    package = open_package(folder)

    assert package == before
    assert package.path(MODEL) == folder / MODEL
    assert package.path(WEIGHTS) == folder / "extra_files" / WEIGHTS
    assert package.num_bytes == before.num_bytes


def test_the_reference_and_the_profile_come_back_as_they_were_saved(tmp_path):
    package = open_package(lay(tmp_path / "package"))
    reference, profile = package.reference(), package.profile()

    np.testing.assert_array_equal(reference.images, IMAGES)
    np.testing.assert_array_equal(reference.logits, LOGITS)
    assert (reference.images.dtype, reference.logits.dtype) == (np.uint8, np.float32)
    assert profile.keys() == PROFILE.keys()
    np.testing.assert_array_equal(profile["profile_brightness"], PROFILE["profile_brightness"])


@pytest.mark.parametrize("lay_out", [lambda folder: None, as_mlflow_lays_it], ids=["flat", "by MLflow"])
@pytest.mark.parametrize("name", [MODEL, REFERENCE, WEIGHTS, CONFIG])
def test_one_changed_bit_of_any_file_is_refused_by_its_name(tmp_path, name, lay_out):
    folder = lay(tmp_path / "package")
    lay_out(folder)
    file = open_package(folder).path(name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    with pytest.raises(DamagedPackageError, match=f"{name}: changed since the package was made"):
        open_package(folder)


@pytest.mark.parametrize("name", [MODEL, CARD, REFERENCE, WEIGHTS, CONFIG])
def test_a_missing_file_is_named(tmp_path, name):
    folder = lay(tmp_path / "package")
    (folder / name).unlink()

    with pytest.raises(DamagedPackageError, match=f"no {name} in this model package"):
        open_package(folder)


def test_a_changed_card_is_refused(tmp_path):
    folder = lay(tmp_path / "package")
    data = (folder / CARD).read_bytes()
    (folder / CARD).write_bytes(data.replace(b'"image_size": 64', b'"image_size": 65'))

    with pytest.raises(DamagedPackageError, match="card.json: not the card of a model package.*sha256 differs"):
        open_package(folder)


def test_a_package_of_another_schema_version_is_not_called_damaged(tmp_path):
    folder = lay(tmp_path / "package", schema_version=2)

    with pytest.raises(UserError, match="card.json: a card of schema version 2") as caught:
        open_package(folder)
    assert not isinstance(caught.value, DamagedPackageError)


def test_a_reference_with_pickled_objects_is_not_read(tmp_path):
    folder = lay(tmp_path / "package")
    np.savez(folder / REFERENCE, images=IMAGES, logits=np.array([print], dtype=object))
    seal(folder)

    with pytest.raises(ValueError, match="allow_pickle=False"):
        open_package(folder).reference()
