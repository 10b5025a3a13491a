from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile

import pytest

from flatfix.data.shards import ShardWriter, _header, extensions
from flatfix.data.sources.base import Record

RECORDS = [
    Record("plain", "cat", "", "png", "train"),
    Record("folder/with space", "dog", "", "jpg", "val", "mono", (0.25, 0.75)),
    Record("Köln/фото", "cat", "", "webp", "test"),
    Record("long/" + "x" * 200, "dog", "", "png", "train"),
    Record("/".join(["very" * 20] * 6), "dog", "", "png", "train"),
]


def written(folder, shard_bytes=1 << 20, size=1000):
    folder.mkdir(exist_ok=True)
    data = {record.id: hashlib.sha512(record.id.encode()).digest() * (size // 64) + b"end" for record in RECORDS}
    with ShardWriter(folder, shard_bytes) as shards:
        places = {record.id: shards.add(record, data[record.id]) for record in RECORDS}
    return shards.names, places, data


def webdataset_samples(path):
    """Group members as WebDataset does: consecutive ones with the same name up to the first dot of the last part."""
    samples = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name).groups()
            if key not in samples:
                samples[key] = {}
            assert list(samples)[-1] == key
            samples[key][extension] = tar.extractfile(member).read()
    return samples


def test_every_picture_is_a_webdataset_sample_with_its_facts(tmp_path):
    names, _, data = written(tmp_path)

    samples = webdataset_samples(tmp_path / names[0])

    assert list(samples) == [record.id for record in RECORDS]
    for record in RECORDS:
        sample = samples[record.id]
        assert set(sample) == {"json", record.extension}
        assert sample[record.extension] == data[record.id]
    facts = json.loads(samples["folder/with space"]["json"])
    assert facts == {"label": "dog", "split": "val", "target": [0.25, 0.75], "group": "mono"}


def test_offset_and_length_are_where_the_bytes_lie(tmp_path):
    _, places, data = written(tmp_path)

    for id, place in places.items():
        shard = (tmp_path / place.shard).read_bytes()
        assert shard[place.offset : place.offset + place.length] == data[id]


@pytest.mark.parametrize(("shard_bytes", "num_shards"), [(1 << 20, 1), (100_000, 3), (1, 5)])
def test_a_shard_is_closed_once_it_is_large_enough_and_holds_whole_pictures(tmp_path, shard_bytes, num_shards):
    names, places, data = written(tmp_path, shard_bytes, size=60_000)

    assert names == [f"shard-{number:05d}.tar" for number in range(num_shards)]
    assert list(dict.fromkeys(place.shard for place in places.values())) == names
    assert all((tmp_path / name).stat().st_size >= shard_bytes for name in names[:-1])
    assert sum(len(webdataset_samples(tmp_path / name)) for name in names) == len(data)


def test_the_same_pictures_give_the_same_bytes(tmp_path):
    names, _, _ = written(tmp_path / "a")
    again, _, _ = written(tmp_path / "b")

    assert names == again
    assert (tmp_path / "a" / names[0]).read_bytes() == (tmp_path / "b" / names[0]).read_bytes()


def test_a_shard_is_what_tarfile_writes(tmp_path):
    names, places, data = written(tmp_path)
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w") as tar:
        for record in RECORDS:
            facts = {name: getattr(record, name) for name in ("label", "split", "target", "group")}
            contents = {"json": json.dumps(facts, ensure_ascii=False).encode(), record.extension: data[record.id]}
            for extension, content in contents.items():
                member = tarfile.TarInfo(f"{record.id}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    assert (tmp_path / names[0]).read_bytes() == expected.getvalue()


def test_what_begins_where_in_a_shard_is_told_by_its_extension(tmp_path):
    names, places, _ = written(tmp_path)

    with (tmp_path / names[0]).open("rb") as shard:
        found = extensions(shard)

    assert len(found) == 2 * len(RECORDS)
    assert [found[places[record.id].offset] for record in RECORDS] == [record.extension for record in RECORDS]


@pytest.mark.parametrize("size", [0, 1, 511, 8**11 - 1, 8**11, 10**12])
@pytest.mark.parametrize("name", ["a b.json", "x" * 100, "x" * 101, "é.png", "a/" * 40 + "b.jpg"])
def test_the_header_of_a_member_is_that_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size = size

    assert _header(name, size) == member.tobuf()
