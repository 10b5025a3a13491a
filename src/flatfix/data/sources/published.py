"""The pictures of a version that is published already."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter

import pyarrow as pa

from flatfix.data.index import rows
from flatfix.data.shards import Place, extensions
from flatfix.data.sources.base import Record
from flatfix.data.version import DatasetVersion


@dataclass(frozen=True)
class PublishedSource:
    """Read a version back, as it was published; a record's location is the picture's id."""

    version: DatasetVersion
    num_readers = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.version.manifest.classes

    def records(self) -> list[Record]:
        """List the pictures in the order of the shards.

        Raises:
            DamagedVersionError: when a file of the version is missing or was altered.
        """
        return self._records

    def read(self, record: Record) -> bytes:
        """Return the original bytes of one picture."""
        place = Place(**self._places.slice(self._row_of[record.location], 1).to_pylist()[0])
        with self.version.open_shard(place.shard) as file:
            file.seek(place.offset)
            return file.read(place.length)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Name the version."""
        manifest = self.version.manifest
        return {"kind": "published", "name": manifest.name, "version": manifest.version}

    @cached_property
    def _records(self) -> list[Record]:
        columns = ("shard", "offset", "id", "label", "split", "group", "target")
        index = self.version.index(list(columns))
        records = []
        for shard, of_shard in groupby(rows(index, columns), key=itemgetter(0)):
            with self.version.open_shard(shard) as file:
                extension_at = extensions(file)
            records += [
                # A million of these are held at a time: no text that others have too is kept twice.
                Record(
                    id,
                    sys.intern(label),
                    id,
                    sys.intern(extension_at[offset]),
                    sys.intern(split),
                    group and sys.intern(group),
                    target and tuple(target),
                )
                for _, offset, id, label, split, group, target in of_shard
            ]
        return records

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {record.id: row for row, record in enumerate(self._records)}

    @cached_property
    def _places(self) -> pa.Table:
        return self.version.index(list(Place._fields)).combine_chunks()
