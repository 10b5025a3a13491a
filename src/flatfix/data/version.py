"""Open the dataset versions that a store holds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from flatfix.console import complain
from flatfix.data.blobs import DamagedFileError
from flatfix.data.manifest import Manifest
from flatfix.data.store import Store
from flatfix.errors import UserError, did_you_mean

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.parquet"
ATTEMPTS = 4  # to open a shard before a cache without room deletes it


class DamagedVersionError(UserError):
    """Report that a file of a version is missing or is not what was published."""


@dataclass(frozen=True)
class DatasetVersion:
    """Read the files of one version; none is used before its sha256 is found to be the manifest's."""

    manifest: Manifest
    store: Store
    _verified: dict[str, Path] = field(default_factory=dict, init=False, repr=False, compare=False)

    def index(self, columns: list[str] | None = None) -> pa.Table:
        """Return one row for each picture, with all columns of `index.INDEX_SCHEMA` or these.

        Raises:
            DamagedVersionError: when the index is missing or was altered.
        """
        return pq.read_table(self._file(INDEX_NAME, self.manifest.index_sha256), columns=columns)

    def shard(self, name: str) -> Path:
        """Return a local tar file.

        Raises:
            DamagedVersionError: when the shard is missing or was altered.
        """
        return self._file(name, next(shard.sha256 for shard in self.manifest.shards if shard.name == name))

    def open_shard(self, name: str) -> BinaryIO:
        """Open a local tar file, which can be read from then on whatever a cache deletes.

        Raises:
            DamagedVersionError: when the shard is missing or was altered.
            UserError: when the cache has no room for it.
        """
        for _ in range(ATTEMPTS):
            with suppress(FileNotFoundError):  # room was made in the cache for another file just now
                return self.shard(name).open("rb")
        raise UserError(f"dataset.cache_gigabytes: too small, {name} was deleted for other files before it was read.")

    def _file(self, name: str, sha256: str) -> Path:
        if name in self._verified and self._verified[name].exists():  # a cache may have let go of it
            if not self.store.is_local:
                with suppress(FileNotFoundError):
                    os.utime(self._verified[name])  # the cache deletes first what was not used for longest
            return self._verified[name]
        key = f"{version_key(self.manifest.name, self.manifest.version)}/{name}"
        try:
            self._verified[name] = self.store.fetch(key, sha256)
        except FileNotFoundError as error:
            raise self._damaged(key, "is missing") from error
        except DamagedFileError as error:
            raise self._damaged(key, "is not what was published: its sha256 differs from the manifest's") from error
        return self._verified[name]

    def _damaged(self, key: str, what: str) -> DamagedVersionError:
        return DamagedVersionError(
            f"dataset.version={self.manifest.version}: {key} in {self.store.uri} {what}. "
            "Restore the file from a backup, or publish the source again as another version."
        )


def version_key(name: str, version: str) -> str:
    """Return the key under which the files of a version lie.

    Raises:
        UserError: for a name or version that could not be a folder's name everywhere.
    """
    for option, value in (("dataset.name", name), ("dataset.version", version)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise UserError(f"{option}={value!r}: begin with a letter or digit, go on with these or any of . _ -")
    return f"datasets/{name}/{version}"


def is_held(store: Store, name: str, version: str) -> bool:
    """Say whether the store holds the version."""
    return store.exists(_manifest_key(name, version))


def open_version(store: Store, name: str, version: str) -> DatasetVersion:
    """Open a version.

    Raises:
        UserError: when the store does not hold it; the message lists what it holds.
    """
    if not is_held(store, name, version):
        raise not_held(store, name, version)
    return DatasetVersion(_read_manifest(store, _manifest_key(name, version)), store)


def open_newest(store: Store, name: str) -> DatasetVersion:
    """Open the version of a dataset that was published last.

    Raises:
        UserError: when the store holds none that can be read; the message lists the datasets that it holds.
    """
    manifests = list_versions(store, name)
    if not manifests:
        names = sorted({manifest.name for manifest in list_versions(store)})
        raise UserError(
            f"dataset.name={name}: no version of it in the store {store.uri}, which holds "
            f"{', '.join(names) or 'nothing yet'}.{did_you_mean(name, names)} "
            "Name the store that holds it with store.uri."
        )
    return DatasetVersion(manifests[-1], store)


def not_held(store: Store, name: str, version: str, fix: str = "") -> UserError:
    """Return the error for a version that the store does not hold."""
    held = [
        key.removeprefix("datasets/").removesuffix(f"/{MANIFEST_NAME}") for key in _manifest_keys(store, "datasets/")
    ]
    return UserError(
        f"dataset.name={name} dataset.version={version}: not in the store {store.uri}, which holds "
        f"{', '.join(held) or 'no version yet'}.{did_you_mean(f'{name}/{version}', held)} {fix}".rstrip()
    )


def list_versions(store: Store, name: str | None = None, tell: Callable[[str], object] = complain) -> list[Manifest]:
    """Return the manifests of all versions, or of those of one dataset, by name and then oldest first.

    One that cannot be read is left out, and `tell` is told why.
    """
    manifests = []
    for key in _manifest_keys(store, "datasets/" if name is None else f"datasets/{name}/"):
        try:
            manifests.append(_read_manifest(store, key))
        except UserError as error:
            tell(str(error))
    return sorted(manifests, key=lambda manifest: (manifest.name, manifest.created, manifest.version))


def _manifest_keys(store: Store, prefix: str) -> list[str]:
    return [key for key in store.list(prefix) if key.endswith(f"/{MANIFEST_NAME}")]


def _manifest_key(name: str, version: str) -> str:
    return f"{version_key(name, version)}/{MANIFEST_NAME}"


def _read_manifest(store: Store, key: str) -> Manifest:
    try:
        return Manifest.from_json(store.read(key))
    except UserError as error:
        raise UserError(f"{key} in {store.uri}: {error}") from error
