from __future__ import annotations

import importlib.metadata
import os
import sys
from collections import Counter

import pytest

from flatfix.data.sources.elpv import ElpvSource
from flatfix.errors import UserError
from flatfix.inference.decode import decode


@pytest.fixture(scope="module")
def source():
    try:
        ElpvSource().describe()
    except UserError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("elpv-dataset is not installed")
    return ElpvSource()


def test_a_cell_is_defective_when_its_probability_exceeds_one_half(source):
    records = source.records()

    assert source.classes == ("ok", "defective")
    assert Counter(record.label for record in records) == {"ok": 1803, "defective": 821}
    assert all((record.target[1] > 0.5) == (record.label == "defective") for record in records)
    assert {round(record.target[1], 3) for record in records} == {0, 0.333, 0.667, 1}
    assert all(sum(record.target) == pytest.approx(1) for record in records)


def test_groups_are_cell_types_and_ids_are_the_file_names(source):
    records = source.records()

    assert {record.group for record in records} == {"mono", "poly"}
    assert records[0].id == "cell0001"
    assert len({record.id for record in records}) == 2624


def test_a_record_reads_as_a_picture_of_300_pixels(source):
    assert decode(source.read(source.records()[-1])).shape == (300, 300, 3)


def test_the_package_version_determines_the_content(source):
    assert source.describe() == {"kind": "elpv", "package_version": importlib.metadata.version("elpv-dataset")}


def test_a_missing_package_is_reported_with_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "path", [])

    with pytest.raises(UserError, match=r"elpv-dataset is not installed.*pip install 'flatfix\[demo\]'.*tires"):
        ElpvSource().records()
