"""Put the files of a version into a store."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from flatfix.data.manifest import Manifest
from flatfix.data.store import Store, StoreConflictError
from flatfix.data.version import INDEX_NAME, MANIFEST_NAME, is_held, open_version, version_key
from flatfix.errors import UserError


def commit(store: Store, manifest: Manifest, folder: Path) -> Manifest:
    """Put the files into the store, the manifest last; leave alone what is there already."""
    name, version = manifest.name, manifest.version
    key = version_key(name, version)
    # Of two that publish at once the second waits here, and then finds the version of the first.
    with suppress(StoreConflictError), store.lock(key):
        if not is_held(store, name, version):
            for file in (*(shard.name for shard in manifest.shards), INDEX_NAME):
                store.put_file(f"{key}/{file}", folder / file)
            store.put_bytes(f"{key}/{MANIFEST_NAME}", manifest.to_json(), exclusive=True)
            return manifest
    held = open_version(store, name, version).manifest
    if held.digest != manifest.digest:
        raise UserError(
            f"dataset.version={version}: {store.uri} holds {name}/{version} with other content (digest "
            f"{held.digest[:12]}, the source now gives {manifest.digest[:12]}), and a version never changes. "
            "Publish under another dataset.version."
        )
    return held
