"""Where dataset versions are kept: a folder, or object storage behind the same few verbs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from flatfix.console import say
from flatfix.data.blobs import Blobs, DamagedFileError, file_sha256
from flatfix.errors import UserError
from flatfix.files import replacing

Keys = list[str]  # inside a class with a method `list`, the name means the method
Advance = Callable[[int], object]  # is told how many more bytes are done; raises to end the work
Confirm = Callable[[], None]  # returns if a lock is still held, or raises UserError
HIDDEN = "."  # what a name that begins so holds is no part of a version
CHUNK_BYTES = 1 << 20


class StoreConflictError(Exception):
    """Report that a key that had to be new is already taken."""


def open_store(
    options: Mapping[str, Any], cache: str | Path, *, gigabytes: float | None = None, is_offline: bool = False
) -> Store:
    """Return the store that the options name: those of `store=s3` have an `endpoint_url`.

    What is fetched over a network is kept in the folder `cache`, the files of at most that many gigabytes. Offline, a
    store that is not of this machine is what that folder holds of it.

    Raises:
        UserError: for an address that is none.
    """
    if "endpoint_url" not in options:
        return LocalStore(options["uri"])
    # These import boto3, which takes half a second.
    from flatfix.data.s3_store import OfflineS3Store, S3Store

    blobs = Blobs(Path(cache) / "blobs", None if gigabytes is None else int(gigabytes * 1e9))
    return (OfflineS3Store if is_offline else S3Store)(**options, blobs=blobs)


class Store(Protocol):
    """Files under keys like `datasets/elpv/v1/manifest.json`; a key is there whole or not at all."""

    @property
    def uri(self) -> str:
        """Where the store is."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether the files lie on this machine."""
        ...

    def check_writable(self) -> None:
        """Raise UserError where nothing can be put."""
        ...

    def exists(self, key: str) -> bool:
        """Say whether the key holds something."""
        ...

    def read(self, key: str) -> bytes:
        """Return the content; FileNotFoundError where there is none."""
        ...

    def fetch(self, key: str, sha256: str) -> Path:
        """Return a local file with the content, which has that sha256.

        Raises:
            FileNotFoundError: where there is none.
            DamagedFileError: where the content is another.
        """
        ...

    def list(self, prefix: str) -> Keys:
        """Return the keys that begin with the prefix, sorted; not those whose last part begins with a dot."""
        ...

    def lock(self, prefix: str) -> AbstractContextManager[Confirm]:
        """Keep other publishers from the keys below the prefix until the context ends, or this process does.

        The second waits. What is yielded is to be called before each write: a lock may be lost. Where a store cannot
        lock it says so, and an exclusive put decides.
        """
        ...

    def holds(self, key: str, sha256: str) -> bool:
        """Say whether the key holds a file with that sha256; over a network, one that was put there as such."""
        ...

    def put_file(self, key: str, path: Path, sha256: str, advance: Advance) -> None:
        """Copy a local file, which has that sha256, to the key."""
        ...

    def put_bytes(self, key: str, data: bytes, exclusive: bool = False) -> None:
        """Write the content; with `exclusive`, StoreConflictError if the key holds something already."""
        ...


class LocalStore:
    """Keep the files in a folder, which is made when the first file is put there.

    `uri` is a path or a `file://` address. An exclusive put needs a file system with hard links.
    """

    is_local = True

    def __init__(self, uri: str | Path) -> None:
        scheme, _, path, _, _ = urlsplit(str(uri))
        if scheme not in ("", "file"):
            raise UserError(
                f"store.uri={uri}: not a folder. Valid: a path, or file:///path; s3://bucket/prefix with store=s3."
            )
        self.root = Path(unquote(path) if scheme else uri).expanduser().absolute()

    @property
    def uri(self) -> str:
        """The folder as a `file://` address."""
        return self.root.as_uri()

    def check_writable(self) -> None:
        """Do nothing: the folder is made when it is needed."""

    def exists(self, key: str) -> bool:
        """Say whether the file is there."""
        return (self.root / key).is_file()

    def read(self, key: str) -> bytes:
        """Return the file's content."""
        return (self.root / key).read_bytes()

    def fetch(self, key: str, sha256: str) -> Path:
        """Return the file itself, once its content is found to be that."""
        if file_sha256(self.root / key) != sha256:
            raise DamagedFileError
        return self.root / key

    def list(self, prefix: str) -> Keys:
        """Return the keys that begin with the prefix, without what is still being written."""
        start = self.root / prefix
        folder = start if prefix.endswith("/") or not prefix else start.parent
        files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(HIDDEN))
        keys = (path.relative_to(self.root).as_posix() for path in files)
        return sorted(key for key in keys if key.startswith(prefix))

    @contextmanager
    def lock(self, prefix: str) -> Iterator[Confirm]:
        """Hold an advisory lock on a hidden file in the folder; the system drops it when the process ends."""
        folder = self.root / prefix
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{HIDDEN}lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another process, which publishes to {folder}")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield lambda: None

    def holds(self, key: str, sha256: str) -> bool:
        """Say whether the file is there and has that sha256."""
        try:
            return file_sha256(self.root / key) == sha256
        except FileNotFoundError:
            return False

    def put_file(self, key: str, path: Path, sha256: str, advance: Advance) -> None:
        """Copy the file."""
        with replacing(self.root / key) as partial, path.open("rb") as source, partial.open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
                advance(len(chunk))

    def put_bytes(self, key: str, data: bytes, exclusive: bool = False) -> None:
        """Write the file; with `exclusive`, a hard link makes sure that only one writer wins."""
        with replacing(self.root / key) as partial:
            partial.write_bytes(data)
            if exclusive:
                try:
                    os.link(partial, self.root / key)
                except FileExistsError as error:
                    raise StoreConflictError(f"{key} is already in {self.uri}") from error
