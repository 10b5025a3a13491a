"""What changed from one dataset version to another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from flatfix.data.index import rows
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
    columns = ["id", *CHANGES]
    before, after = (version.index(columns).sort_by("id") for version in (old, new))
    was_there = pc.is_in(after["id"], value_set=before["id"])
    is_there = pc.is_in(before["id"], value_set=after["id"])
    found = Diff(
        added=after["id"].filter(pc.invert(was_there)).to_pylist(),
        removed=before["id"].filter(pc.invert(is_there)).to_pylist(),
        changed={column: [] for column in CHANGES},
    )
    kept = rows(before.filter(is_there), columns), rows(after.filter(was_there), columns)
    for (id, *one), (_, *other) in zip(*kept, strict=True):
        if one == other:
            continue
        for column, was, now in zip(CHANGES, one, other, strict=True):
            if was != now:
                found.changed[column].append(id if column == "sha256" else f"{id}: {_shown(was)} -> {_shown(now)}")
    return found


def _shown(value: Any) -> str:
    return "none" if value is None else " ".join(f"{each:g}" for each in value) if isinstance(value, list) else value
