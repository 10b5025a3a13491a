"""Dataset versions in S3, and what a cache of this machine holds of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flatfix.console import say
from flatfix.data import s3
from flatfix.data.blobs import Blobs
from flatfix.data.lease import Lease
from flatfix.data.store import HIDDEN, Advance, Confirm, Keys, LocalStore, StoreConflictError
from flatfix.errors import UserError


class _StoreError(UserError):
    """Report trouble with a store, whose options the message names."""


class S3Store:
    """Keep dataset versions below `s3://bucket/prefix`; what is fetched is kept in `blobs`.

    Manifests that were read are kept beside the blobs, for `OfflineS3Store`.
    """

    is_local = False

    def __init__(self, uri: str, endpoint_url: str | None, region: str | None, blobs: Blobs) -> None:
        self.uri = _checked(uri)
        self._server = (endpoint_url, region)
        self._blobs = blobs
        self._seen = LocalStore(_seen_folder(self.uri, endpoint_url, blobs))

    def check_writable(self) -> None:
        """Do nothing: what may be written, the server says when it is asked to."""

    def exists(self, key: str) -> bool:
        """Say whether the object is there, by asking for it: the answer to HEAD does not tell a wrong bucket."""
        try:
            with self._explained(key):
                s3.touch(self._uri_of(key), *self._server)
        except FileNotFoundError:
            return False
        return True

    def read(self, key: str) -> bytes:
        """Return the object's content."""
        with self._explained(key):
            content = s3.read(self._uri_of(key), *self._server)
        self._seen.put_bytes(key, content)
        return content

    def fetch(self, key: str, sha256: str) -> Path:
        """Return the copy in the cache, downloaded if need be."""
        return self._blobs.get(sha256, lambda path: self._download(key, path))

    def list(self, prefix: str) -> Keys:
        """Return the keys that begin with the prefix, without locks."""
        start = len(self.uri) + 1
        with self._explained(prefix):
            keys = [uri[start:] for uri in s3.list_uris(self._uri_of(prefix), *self._server)]
        return [key for key in keys if not key.rpartition("/")[2].startswith(HIDDEN)]

    @contextmanager
    def lock(self, prefix: str) -> Iterator[Confirm]:
        """Hold a `Lease` on a hidden object below the prefix; other publishers, of any machine, wait for it."""
        key = f"{prefix}/{HIDDEN}lock"
        lease = Lease(self._uri_of(key), *self._server)

        def confirm() -> None:
            with self._explained(key):
                lease.confirm()

        try:
            with self._explained(key):
                lease.take()
            yield confirm
        finally:
            lease.release()

    def holds(self, key: str, sha256: str) -> bool:
        """Say whether the object was uploaded with that sha256."""
        try:
            with self._explained(key):
                return s3.sha256_at_upload(self._uri_of(key), *self._server) == sha256
        except FileNotFoundError:
            return False

    def put_file(self, key: str, path: Path, sha256: str, advance: Advance) -> None:
        """Upload the file, several parts at a time; an upload that breaks off leaves no object."""
        with self._explained(key):
            s3.upload(path, self._uri_of(key), *self._server, sha256=sha256, advance=advance)

    def put_bytes(self, key: str, data: bytes, exclusive: bool = False) -> None:
        """Write the object; with `exclusive`, the server lets only one writer win, or what is read back says who won.

        The server's refusal is not enough: it may be of a repetition, when the answer to the first request was lost.
        """
        uri = self._uri_of(key)
        if exclusive and self.exists(key):  # some servers pass over the condition
            raise StoreConflictError(f"{key} is already in {self.uri}")
        with self._explained(key):
            try:
                s3.put(uri, data, *self._server, over=None if exclusive else s3.ANYTHING)
            except s3.UnconditionalServerError:
                s3.put(uri, data, *self._server)
            if exclusive and s3.read(uri, *self._server) != data:
                raise StoreConflictError(f"{key} is already in {self.uri}")

    def _download(self, key: str, path: Path) -> None:
        say(f"fetching {self._uri_of(key)}")
        with self._explained(key):
            s3.download(self._uri_of(key), path, *self._server)

    def _uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Raise a UserError that names the options, but for an object that is not there."""
        try:
            with s3.explained(self._uri_of(key), *self._server):
                yield
        except _StoreError:  # explained before: what `advance` raises goes through here
            raise
        except PermissionError as error:
            raise _StoreError(
                f"store.uri={self.uri}: no permission to read {str(error).rstrip('.')}. {s3.HINT}"
            ) from error
        except UserError as error:
            endpoint = self._server[0] or "null"
            raise _StoreError(f"store.uri={self.uri} store.endpoint_url={endpoint}: {error}") from error


class OfflineS3Store(LocalStore):
    """Be what the cache holds of an S3 store, without a request."""

    is_local = False

    def __init__(self, uri: str, endpoint_url: str | None, region: str | None, blobs: Blobs) -> None:
        super().__init__(_seen_folder(_checked(uri), endpoint_url, blobs))
        self._uri = _checked(uri)
        self._blobs = blobs

    @property
    def uri(self) -> str:
        """The store's address, and that it is not asked."""
        return f"{self._uri} (dataset.offline=true: as far as {self._blobs.folder.parent} holds it)"

    def check_writable(self) -> None:
        """Raise UserError."""
        raise UserError(f"dataset.offline=true: nothing can be published to {self._uri}. Leave it out.")

    def fetch(self, key: str, sha256: str) -> Path:
        """Return the copy in the cache.

        Raises:
            UserError: when there is none.
        """
        if path := self._blobs.find(sha256):
            return path
        raise UserError(
            f"dataset.offline=true: {key} of {self._uri} is not in {self._blobs.folder}. Run once without "
            "dataset.offline, and with a dataset.cache_gigabytes that the version fits into."
        )

    def put_file(self, key: str, path: Path, sha256: str, advance: Advance) -> None:
        """Raise UserError."""
        self.check_writable()

    def put_bytes(self, key: str, data: bytes, exclusive: bool = False) -> None:
        """Raise UserError."""
        self.check_writable()


def _checked(uri: str) -> str:
    if not uri.startswith(s3.SCHEME):
        raise UserError(f"store.uri={uri}: expected {s3.SCHEME}bucket/prefix. A folder is store=local.")
    try:
        s3.split(uri)
    except UserError as error:
        raise UserError(f"store.uri={error}") from error
    return uri.rstrip("/")


def _seen_folder(uri: str, endpoint_url: str | None, blobs: Blobs) -> Path:
    """Return where manifests of this store are kept: another server may have a bucket of the same name."""
    server = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    name = hashlib.sha256(f"{server} {uri}".encode()).hexdigest()[:32]
    return blobs.folder.parent / "manifests" / name
