"""Objects in S3, or in any store that speaks its protocol: list and read them, and keep dataset versions in them.

Credentials, and address and region where no option names them, are had as every AWS tool has them: from the environment
(`AWS_ENDPOINT_URL`, `AWS_PROFILE`, `AWS_ACCESS_KEY_ID` …), the files of `~/.aws`, or the machine's role.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

from boto3.s3.transfer import S3TransferRetriesExceededError, TransferConfig
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from flatfix.console import say
from flatfix.data.blobs import Blobs
from flatfix.data.store import Keys, LocalStore, StoreConflictError
from flatfix.errors import UserError

SCHEME = "s3://"
CONNECTIONS = 16  # that one process keeps open: how many threads can read at a time
ATTEMPTS = 5
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
TRANSFER = TransferConfig(max_concurrency=CONNECTIONS)  # parts and ranges of 8 MiB
BROKEN_OFF = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
HINT = "S3 is reached as AWS_ENDPOINT_URL, AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say."


@cache
def client(endpoint_url: str | None = None, region: str | None = None) -> Any:
    """Return this process's client of a server, which its threads may share.

    Two threads that ask first may make two; each has a session of its own, as boto3's default one is not thread-safe.
    """
    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=CONNECTIONS,
        # From 1.36 on botocore sends and expects checksums that stores other than Amazon's may not know.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return Session().client("s3", endpoint_url=endpoint_url, region_name=region, config=config)


# A forked process that went on with its parent's connections would read the parent's answers (s3fs issue 369).
os.register_at_fork(after_in_child=client.cache_clear)


def list_uris(uri: str, *server: str | None) -> Iterator[str]:
    """Yield the addresses of all objects whose address begins with `uri`, sorted by their UTF-8 bytes.

    `server` is what `client` takes.

    Raises:
        UserError: when the bucket cannot be listed.
    """
    bucket, prefix = split(uri)
    with explained(uri, *server):
        for page in client(*server).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from (f"{SCHEME}{bucket}/{item['Key']}" for item in page.get("Contents", []))


def read(uri: str, *server: str | None) -> bytes:
    """Return the content of an object; `server` is what `client` takes.

    Raises:
        FileNotFoundError: when there is no such object.
        PermissionError: when this object may not be read.
        UserError: when nothing can be read here.
    """
    bucket, key = split(uri)
    with explained(uri, *server):
        for _ in range(ATTEMPTS - 1):
            # botocore repeats a request that fails, but does not read a body again that breaks off.
            try:
                return _read(bucket, key, *server)
            except BROKEN_OFF:
                continue
        return _read(bucket, key, *server)


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key of `s3://bucket/key`.

    Raises:
        UserError: for an address without a bucket.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise UserError(f"{uri}: names no bucket. Expected {SCHEME}bucket/prefix.")
    return bucket, key


@contextmanager
def explained(uri: str, *server: str | None) -> Iterator[None]:
    """Raise what goes wrong with `uri` as an OSError where it concerns one object, else as a UserError.

    `server` is what `client` takes.
    """
    try:
        yield
    except UserError:  # explained before; it is a ValueError too
        raise
    except ClientError as error:
        code, message = (error.response["Error"].get(name, "") for name in ("Code", "Message"))
        if code in ("NoSuchKey", "404"):  # the answer to HEAD has no more than a number
            raise FileNotFoundError(f"{uri}: no such object") from error
        is_read = error.operation_name in ("GetObject", "HeadObject")
        if is_read and code in ("AccessDenied", "InvalidObjectState", "403"):
            raise PermissionError(f"{uri}: {message}") from error
        if code == "NoSuchBucket":
            where = client(*server).meta.endpoint_url
            raise UserError(f"{uri}: no such bucket at {where}. AWS_ENDPOINT_URL names another server.") from error
        raise UserError(f"{uri}: {code}: {message.rstrip('.')}. {HINT}") from error
    except (
        BotoCoreError,
        S3TransferRetriesExceededError,
        ValueError,
    ) as error:  # botocore reports a malformed AWS_ENDPOINT_URL as a ValueError
        raise UserError(f"{uri}: {str(error).rstrip('.')}. {HINT}") from error


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

    def exists(self, key: str) -> bool:
        """Say whether the object is there, by asking for it: the answer to HEAD does not tell a wrong bucket."""
        try:
            with self._explained(key):
                self._client().get_object(**self._object(key))["Body"].close()
        except FileNotFoundError:
            return False
        return True

    def read(self, key: str) -> bytes:
        """Return the object's content."""
        with self._explained(key):
            content = read(f"{self.uri}/{key}", *self._server)
        self._seen.put_bytes(key, content)
        return content

    def fetch(self, key: str, sha256: str) -> Path:
        """Return the copy in the cache, downloaded if need be."""
        return self._blobs.get(sha256, lambda path: self.download(key, path))

    def download(self, key: str, path: Path) -> None:
        """Write the object's content to a file, several ranges at a time; FileNotFoundError where there is none."""
        say(f"fetching {self.uri}/{key}")
        with path.open("wb") as file, self._explained(key):
            self._client().download_fileobj(**self._object(key), Fileobj=file, Config=TRANSFER)

    def list(self, prefix: str) -> Keys:
        """Return the keys that begin with the prefix."""
        start = len(self.uri) + 1
        with self._explained(prefix):
            return [uri[start:] for uri in list_uris(f"{self.uri}/{prefix}", *self._server)]

    def lock(self, prefix: str) -> AbstractContextManager[None]:
        """Keep nobody out: S3 has no locks. Of two that publish one version, the first to put its manifest wins.

        Should their content differ, the shards of one may be under the manifest of the other: that version is damaged
        and is never used, as no sha256 fits.
        """
        return nullcontext()

    def put_file(self, key: str, path: Path) -> None:
        """Upload the file, several parts at a time; an upload that breaks off leaves no object."""
        with path.open("rb") as file, self._explained(key):
            self._client().upload_fileobj(Fileobj=file, **self._object(key), Config=TRANSFER)

    def put_bytes(self, key: str, data: bytes, exclusive: bool = False) -> None:
        """Write the object; with `exclusive`, the server lets only one writer win, or what is read back says who won.

        The server's refusal is not enough: it may be of a repetition, when the answer to the first request was lost.
        """
        if exclusive and self.exists(key):  # some servers pass over the condition
            raise StoreConflictError(f"{key} is already in {self.uri}")
        with self._explained(key):
            put = partial(self._client().put_object, **self._object(key), Body=data)
            if not exclusive:
                put()
                return
            try:
                put(IfNoneMatch="*")
            except ClientError as error:
                if error.response["Error"]["Code"] == "NotImplemented":
                    put()
                elif error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict"):
                    raise
            if read(f"{self.uri}/{key}", *self._server) != data:
                raise StoreConflictError(f"{key} is already in {self.uri}")

    def _client(self) -> Any:
        return client(*self._server)

    def _object(self, key: str) -> dict[str, str]:
        bucket, name = split(f"{self.uri}/{key}")
        return {"Bucket": bucket, "Key": name}

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Raise a UserError that names the options, but for an object that is not there."""
        try:
            with explained(f"{self.uri}/{key}", *self._server):
                yield
        except PermissionError as error:
            raise UserError(f"store.uri={self.uri}: no permission to read {str(error).rstrip('.')}. {HINT}") from error
        except UserError as error:
            endpoint = self._server[0] or "null"
            raise UserError(f"store.uri={self.uri} store.endpoint_url={endpoint}: {error}") from error


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

    def put_file(self, key: str, path: Path) -> None:
        """Refuse."""
        raise UserError(f"dataset.offline=true: nothing can be published to {self._uri}.")

    def put_bytes(self, key: str, data: bytes, exclusive: bool = False) -> None:
        """Refuse."""
        raise UserError(f"dataset.offline=true: nothing can be published to {self._uri}.")


def _read(bucket: str, key: str, *server: str | None) -> bytes:
    content: bytes = client(*server).get_object(Bucket=bucket, Key=key)["Body"].read()
    return content


def _checked(uri: str) -> str:
    if not uri.startswith(SCHEME):
        raise UserError(f"store.uri={uri}: expected {SCHEME}bucket/prefix. A folder is store=local.")
    split(uri)
    return uri.rstrip("/")


def _seen_folder(uri: str, endpoint_url: str | None, blobs: Blobs) -> Path:
    """Return where manifests of this store are kept: another server may have a bucket of the same name."""
    server = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    name = hashlib.sha256(f"{server} {uri}".encode()).hexdigest()[:32]
    return blobs.folder.parent / "manifests" / name
