"""The pictures of a version that is published already."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from flatfix.data.shards import Place, extensions
from flatfix.data.sources.base import Record
from flatfix.data.version import DatasetVersion


@dataclass(frozen=True)
class PublishedSource:
    """Read a version back, as it was published; a record's location is the picture's id."""

    version: DatasetVersion

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.version.manifest.classes

    def records(self) -> list[Record]:
        """List the pictures in the order of the shards.

        Raises:
            DamagedVersionError: when a file of the version is missing or was altered.
        """
        held = {shard.name: extensions(self.version.shard(shard.name)) for shard in self.version.manifest.shards}
        columns = ["id", "label", "split", "group", "target", "shard", "offset"]
        return [
            Record(
                row["id"],
                row["label"],
                row["id"],
                held[row["shard"]][row["offset"]],
                row["split"],
                row["group"],
                None if row["target"] is None else tuple(row["target"]),
            )
            for row in self.version.index().select(columns).to_pylist()
        ]

    def read(self, record: Record) -> bytes:
        """Return the original bytes of one picture."""
        place = self._places[record.location]
        with self.version.shard(place.shard).open("rb") as file:
            file.seek(place.offset)
            return file.read(place.length)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Name the version."""
        manifest = self.version.manifest
        return {"kind": "published", "name": manifest.name, "version": manifest.version}

    @cached_property
    def _places(self) -> dict[str, Place]:
        rows = self.version.index().select(["id", *Place._fields]).to_pylist()
        return {row.pop("id"): Place(**row) for row in rows}
