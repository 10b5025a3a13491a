"""Put the files of a version into a store."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from flatfix.console import progress, say
from flatfix.data.manifest import Manifest
from flatfix.data.store import Confirm, Store, StoreConflictError
from flatfix.data.version import INDEX_NAME, MANIFEST_NAME, is_held, open_version, version_key
from flatfix.errors import UserError

AT_ONCE = 4  # files


class _File(NamedTuple):
    key: str
    path: Path
    sha256: str


def commit(store: Store, manifest: Manifest, folder: Path) -> Manifest:
    """Put the files of `folder` into the store, the manifest last, and return the manifest that the store holds.

    Files that the store holds already, from an attempt that broke off, stay. A version that is held with the same
    content is left alone.

    Raises:
        UserError: when the version is held with other content; the store is then as it was.
    """
    name, version = manifest.name, manifest.version
    key = version_key(name, version)
    # Of two that publish at once the second waits here, and then finds the version of the first.
    with suppress(StoreConflictError), store.lock(key) as confirm:
        if not is_held(store, name, version):
            sha256s = {shard.name: shard.sha256 for shard in manifest.shards} | {INDEX_NAME: manifest.index_sha256}
            files = [_File(f"{key}/{file}", folder / file, sha256) for file, sha256 in sha256s.items()]
            _put(store, files, confirm)
            confirm()
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


def _put(store: Store, files: Sequence[_File], confirm: Confirm) -> None:
    """Put the files that the store lacks, several at a time, and look whether it then holds them all."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        missing = _missing(store, files, pool)
        if len(missing) < len(files):
            say(f"{len(files) - len(missing)} of {len(files)} files are in the store already")
        is_over = threading.Event()
        with progress("Storing", sum(file.path.stat().st_size for file in missing), "bytes") as advance:

            def put(file: _File) -> None:
                def go_on(num_bytes: int) -> None:
                    if is_over.is_set():
                        raise CancelledError
                    confirm()
                    advance(num_bytes)

                go_on(0)
                store.put_file(file.key, file.path, file.sha256, go_on)

            puts: list[Future[None]] = []
            try:
                for file in missing:
                    puts.append(pool.submit(put, file))
                for done in as_completed(puts):
                    done.result()
            except BaseException:
                is_over.set()
                for each in puts:
                    each.cancel()
                raise
        if lost := _missing(store, files, pool):
            raise UserError(
                f"{store.uri} does not hold {lost[0].key} as it was just put there, so nothing was published. "
                "Run again, while nobody else writes there."
            )


def _missing(store: Store, files: Sequence[_File], pool: ThreadPoolExecutor) -> list[_File]:
    held = pool.map(lambda file: store.holds(file.key, file.sha256), files)
    return [file for file, is_held in zip(files, held, strict=True) if not is_held]
