"""What a dataset version says of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from flatfix.errors import UserError

SCHEMA_VERSION = 1

Scalar = str | int | float | bool | None
Colour = tuple[float, float, float]  # red, green, blue, 0 to 1


class Content(NamedTuple):
    """What one picture adds to the digest: its name, how it is labelled and the sha256 of its bytes."""

    id: str
    split: str
    label: str
    target: tuple[float, ...] | None
    group: str | None
    sha256: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Content:
        """Take what counts from a row of the index."""
        target = None if row["target"] is None else tuple(map(float, row["target"]))
        return cls(row["id"], row["split"], row["label"], target, row["group"], row["sha256"])


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


def digest(classes: Iterable[str], contents: Iterable[Content]) -> str:
    """Return the sha256 over the classes in order, then the pictures sorted by id, one line of JSON each."""
    lines = [json.dumps(list(classes))]
    lines += (json.dumps(content) for content in sorted(contents))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
