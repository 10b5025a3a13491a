"""What changed from one dataset version to another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flatfix.data.version import DatasetVersion

# What may change of a picture that both versions hold, by the column of the index.
CHANGES = {
    "label": "relabelled",
    "split": "moved between splits",
    "group": "in another group",
    "target": "with another target",
    "sha256": "with other bytes",
}


@dataclass(frozen=True)
class Diff:
    """Say which pictures differ, by their ids, sorted.

    Attributes:
        added: ids that only the newer version holds.
        removed: ids that only the older one holds.
        changed: `id: old -> new` (for bytes the id alone), for each column of `CHANGES`.
    """

    added: list[str]
    removed: list[str]
    changed: dict[str, list[str]] = field(default_factory=dict)


def diff(old: DatasetVersion, new: DatasetVersion) -> Diff:
    """Compare two versions picture by picture."""
    before, after = _rows(old), _rows(new)
    both = sorted(before.keys() & after.keys())
    return Diff(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed={
            column: [
                id if column == "sha256" else f"{id}: {_shown(before[id][column])} -> {_shown(after[id][column])}"
                for id in both
                if before[id][column] != after[id][column]
            ]
            for column in CHANGES
        },
    )


def _rows(version: DatasetVersion) -> dict[str, dict[str, Any]]:
    rows = version.index().select(["id", *CHANGES]).to_pylist()
    return {row["id"]: row for row in rows}


def _shown(value: Any) -> str:
    return "none" if value is None else " ".join(f"{each:g}" for each in value) if isinstance(value, list) else value
