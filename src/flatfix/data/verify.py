"""Hold a dataset version in the store to what was published."""

from __future__ import annotations

from flatfix.console import progress
from flatfix.data.index import rows
from flatfix.data.manifest import CONTENT, digest
from flatfix.data.splits import tally
from flatfix.data.store import Store
from flatfix.data.version import DamagedVersionError, is_held, not_held, open_version
from flatfix.errors import UserError


def verify(store: Store, name: str, version: str) -> list[str]:
    """Hash the index and every shard, compare the manifest with the index, and return what is wrong, a line each.

    Raises:
        UserError: when the store does not hold the version.
    """
    if not is_held(store, name, version):
        raise not_held(store, name, version)
    try:
        held = open_version(store, name, version)
    except UserError as error:
        return [str(error)]
    manifest = held.manifest
    found = []
    with progress("Verifying", len(manifest.shards) + 1, "files") as advance:
        for shard in manifest.shards:
            try:
                held.shard(shard.name)
            except DamagedVersionError as error:
                found.append(str(error))
            advance(1)
        try:
            index = held.index(list(CONTENT))
        except DamagedVersionError as error:
            return [*found, str(error)]
        finally:
            advance(1)
    splits = tally(rows(index, ("split", "label")), manifest.classes)
    if digest(manifest.classes, index) != manifest.digest or splits != manifest.splits:
        found.append(f"manifest.json of {name}/{version} does not tell what the index holds.")
    return found
