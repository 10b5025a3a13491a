"""Freeze a source into a dataset version."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from flatfix.console import say
from flatfix.data.blobs import file_sha256
from flatfix.data.commit import commit
from flatfix.data.findings import find_copies, findings, near_duplicates, refuse_copies_across_splits
from flatfix.data.index import rows
from flatfix.data.manifest import Colour, Manifest, Scalar, Shard, digest
from flatfix.data.sources.base import Record, Source
from flatfix.data.splits import SPLITS, SplitRule, assign, ranked, tally
from flatfix.data.staging import stage
from flatfix.data.store import Store
from flatfix.data.version import (
    INDEX_NAME,
    DatasetVersion,
    is_held,
    not_held,
    open_version,
    version_key,
)
from flatfix.errors import UserError, enumerated, one_of
from flatfix.files import needing_room

ON_BAD_IMAGE = ("error", "skip")
LOCATIONS = ("root", "file")  # say where a source lies, not what it holds


def publish(
    source: Source,
    store: Store,
    *,
    name: str,
    version: str,
    rule: SplitRule,
    on_bad_image: str = "error",
    allow_duplicates: bool = False,
    shard_bytes: int = 256 << 20,
    parent: str | None = None,
) -> Manifest:
    """Write every picture of the source into the store as one version, and return its manifest.

    Everything is read, decoded and written to a temporary folder first, which takes as much room as the dataset
    (`TMPDIR` chooses the disk); then the shards and the index go to the store, and the manifest last. A version that
    exists with the same digest is left as it is.

    Raises:
        UserError: for unreadable pictures unless `on_bad_image` is `skip`, for copies of a picture in more than one
            split unless `allow_duplicates`, and for a version that exists with other content. The store is then as
            it was.
    """
    one_of("dataset.on_bad_image", on_bad_image, ON_BAD_IMAGE)
    version_key(name, version)  # a wrong name is known now, not after the reading
    store.check_writable()
    with TemporaryDirectory(prefix="flatfix-publish-") as temporary:
        folder = Path(temporary)
        records = source.records()
        fix = "Nothing was published. Free some, or name a folder with room for the whole dataset."
        with needing_room("TMPDIR", f"the shards in {folder.parent}", fix):
            staged = stage(source, _planned(records, rule), len(records), folder, shard_bytes)
        if staged.unreadable and on_bad_image == "error":
            raise _unreadable(staged.unreadable)
        if not staged.levels.any():
            raise UserError(f"dataset.source: no readable train picture for {name}/{version}.")
        index = staged.content
        copies = find_copies(index)
        if not allow_duplicates:
            refuse_copies_across_splits(copies)
        splits = tally(rows(index, ("split", "label")), source.classes)
        mean, std = _mean_and_std(staged.levels)
        manifest = Manifest(
            name=name,
            version=version,
            digest=digest(source.classes, index),
            classes=source.classes,
            splits=splits,
            mean=mean,
            std=std,
            source=_configuration(source, rule, on_bad_image),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            shards=tuple(_shard(folder / shard) for shard in staged.shard_names),
            index_sha256=file_sha256(folder / INDEX_NAME),
            findings=(
                *findings(index, copies, splits, source.classes, keeps_groups=rule.groups == "keep"),
                *near_duplicates(index, staged.hashes),
                *(f"skipped {file}" for file in staged.unreadable),
            ),
            parent=parent,
        )
        return commit(store, manifest, folder)


_freeze = publish  # `resolve` has a parameter of that name


def resolve(
    store: Store,
    *,
    name: str,
    version: str,
    source: Source | None,
    publish: bool | None,
    rule: SplitRule,
    on_bad_image: str,
    allow_duplicates: bool = False,
) -> DatasetVersion:
    """Return the version that a run names, publishing it first where that is allowed.

    A version that the store holds is used as it is. Another is published from `source` if `publish` is true, or if
    it is None and the store is local. Without a source there is nothing to publish, and nothing to compare.

    Raises:
        UserError: when the version is held but was published with another configuration, which would be ignored; or
            when it is not held and may not be published: the message lists the versions that exist.
    """
    if is_held(store, name, version):
        held = open_version(store, name, version)
        if source is not None:
            _refuse_ignored(held.manifest, _configuration(source, rule, on_bad_image))
        return held
    if source is None:
        raise not_held(store, name, version, "Name one that it holds, or a dataset with a source to publish from.")
    if not (store.is_local if publish is None else publish):
        raise not_held(store, name, version, "Set dataset.publish=true to publish it from the configured source.")
    _freeze(
        source,
        store,
        name=name,
        version=version,
        rule=rule,
        on_bad_image=on_bad_image,
        allow_duplicates=allow_duplicates,
    )
    return open_version(store, name, version)


def _planned(records: Sequence[Record], rule: SplitRule) -> Iterator[Record]:
    """Yield every record with its final id and split, in an order in which any run of pictures is a fair sample."""
    ids = _final_ids(records)
    splits = assign(records, ids, rule)
    for row in ranked(ids, within=[np.fromiter(map(SPLITS.index, splits), np.int64, len(splits))]):
        yield replace(records[row], id=ids[row], split=splits[row])


def _final_ids(records: Sequence[Record]) -> list[str]:
    """Make ids fit for the name of a tar member, and unique whatever the order of the records.

    Dots go, because WebDataset takes all after the first for the extension. Unicode is composed, because some file
    systems compose what others decompose. An id that is fit as it stands is nobody else's.
    """
    ids = [_fit_id(record.id) for record in records]
    unfit = [row for row, (id, record) in enumerate(zip(ids, records, strict=True)) if id != record.id]
    taken = {id for id, record in zip(ids, records, strict=True) if id == record.id} if unfit else set()
    for row in sorted(unfit, key=lambda row: records[row].id):
        stem = ids[row]
        number = 1
        while ids[row] in taken:
            number += 1
            ids[row] = f"{stem}~{number}"
        taken.add(ids[row])
    return ids


def _fit_id(id: str) -> str:
    if id.isprintable() and "." not in id and id[:1] != "/" != id[-1:] and unicodedata.is_normalized("NFC", id):
        return id  # the same text, not a copy of it
    text = unicodedata.normalize("NFC", id).strip("/")
    return "".join("_" if char == "." or not char.isprintable() else char for char in text)


def _configuration(source: Source, rule: SplitRule, on_bad_image: str) -> dict[str, Scalar]:
    """Return what determines a version's content, by option path below `dataset`."""
    return {
        **{f"source.{key}": value for key, value in source.describe().items()},
        **{f"split.{key}": value for key, value in asdict(rule).items()},
        "on_bad_image": on_bad_image,
    }


def _refuse_ignored(held: Manifest, configured: dict[str, Scalar]) -> None:
    """Raise UserError for the first value that differs from the one the version was published with.

    Where the pictures lie may differ; an option that the version knows nothing of is not compared.
    """
    for key, value in configured.items():
        published = held.source.get(key, value)
        if published == value:
            continue
        option = "source" if key == "source.kind" else key
        if key.rpartition(".")[2] in LOCATIONS:
            say(f"dataset.{option}={value}: not read; {held.name}/{held.version} was published from {published}")
        else:
            raise UserError(
                f"dataset.{option}={value}: {held.name}/{held.version} is already published, with {published}, and a "
                f"version never changes, so the value would be ignored. Set it back to {published}, name another "
                "dataset.version, or use the version without a source (dataset=published)."
            )


def _unreadable(files: Sequence[str]) -> UserError:
    return UserError(
        f"dataset.source: {len(files)} unreadable pictures, nothing was published:{enumerated(files)}\n"
        "Repair or remove them, or set dataset.on_bad_image=skip to leave them out."
    )


def _mean_and_std(levels: NDArray[np.float64]) -> tuple[Colour, Colour]:
    """Return red, green and blue from how often each level occurs, `[3, 256]`."""
    weights = levels / levels.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = weights @ values
    std = np.sqrt(np.maximum(weights @ values**2 - mean**2, 0))
    return tuple(mean.round(6).tolist()), tuple(std.round(6).tolist())


def _shard(path: Path) -> Shard:
    return Shard(path.name, path.stat().st_size, file_sha256(path))
