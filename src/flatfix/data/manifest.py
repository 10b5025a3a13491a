"""What a dataset version says of itself."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flatfix.data.index import rows
from flatfix.errors import UserError

SCHEMA_VERSION = 1

# What a picture adds to the digest: its name, how it is labelled and the sha256 of its bytes.
CONTENT = ("id", "split", "label", "target", "group", "sha256")
NUM_MERGED = 256  # rows of each part of an index

Scalar = str | int | float | bool | None
Colour = tuple[float, float, float]  # red, green, blue, 0 to 1


@dataclass(frozen=True)
class Shard:
    """Name one tar file of a version."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Describe a dataset version; its presence in the store is what makes the version exist.

    Attributes:
        digest: the same for the same content anywhere, see `digest`.
        classes: names in label order.
        splits: number of pictures of each class, for each split.
        mean: red, green and blue over the train pictures, 0 to 1, each picture with the same weight.
        std: likewise.
        source: what was configured, by the option's path below `dataset`.
        parent: the version that this one was made from, or None.
        created: UTC, ISO 8601.
        findings: what a reader should know of the content, such as pictures that were skipped.
        shards: the tar files in order.
        index_sha256: of `index.parquet`.
    """

    name: str
    version: str
    digest: str
    classes: tuple[str, ...]
    splits: Mapping[str, Mapping[str, int]]
    mean: Colour
    std: Colour
    source: Mapping[str, Scalar]
    created: str
    shards: tuple[Shard, ...]
    index_sha256: str
    findings: tuple[str, ...] = ()
    parent: str | None = None
    schema_version: int = SCHEMA_VERSION

    def num(self, split: str) -> int:
        """Count the pictures of a split."""
        return sum(self.splits[split].values())

    def to_json(self) -> bytes:
        """Write the manifest as indented JSON, and last the sha256 of what stands before."""
        values = asdict(self)
        return _json({**values, "sha256": hashlib.sha256(_json(values)).hexdigest()})

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            UserError: for another schema version, or for something that is not a manifest or was altered.
        """
        try:
            values: dict[str, Any] = json.loads(data)
            found = values["schema_version"]
            if found == SCHEMA_VERSION:
                # Manifests of before Flatfix kept versions in S3 have no sha256.
                if values.pop("sha256", None) not in (None, hashlib.sha256(_json(values)).hexdigest()):
                    raise ValueError("its sha256 differs")
                values["shards"] = [Shard(**shard) for shard in values["shards"]]
                for name in ("classes", "mean", "std", "shards", "findings"):
                    values[name] = tuple(values[name])
                return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"not a manifest of a dataset version ({type(error).__name__}: {error}).") from error
        raise UserError(
            f"a manifest of schema version {found}, where this Flatfix reads {SCHEMA_VERSION}: "
            "use the Flatfix that published it, or publish the dataset again as a new version."
        )


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def digest(classes: Iterable[str], index: pa.Table) -> str:
    """Return the sha256 over the classes in order, then `CONTENT` of the pictures sorted by id, a line of JSON each."""
    sha256 = hashlib.sha256(json.dumps(list(classes)).encode())
    for row in heapq.merge(*map(_by_id, index.select(CONTENT).to_batches()), key=itemgetter(0)):
        sha256.update(b"\n" + json.dumps(row).encode())
    return sha256.hexdigest()


def _by_id(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """Yield the rows sorted by the first column; few are Python objects at a time, because many batches are merged."""
    order = pc.sort_indices(batch.column(0))
    for start in range(0, len(order), NUM_MERGED):
        yield from rows(pa.table(batch.take(order.slice(start, NUM_MERGED))), CONTENT)
