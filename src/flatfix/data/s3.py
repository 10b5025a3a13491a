"""Objects in S3, or in any store that speaks its protocol: list, read and write them.

Credentials, and address and region where no option names them, are had as every AWS tool has them: from the environment
(`AWS_ENDPOINT_URL`, `AWS_PROFILE`, `AWS_ACCESS_KEY_ID` …), the files of `~/.aws`, or the machine's role.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from flatfix.errors import UserError

T = TypeVar("T")

SCHEME = "s3://"
CONNECTIONS = 16  # that one process keeps open: how many threads can read at a time
ATTEMPTS = 5
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 20
PART_BYTES = 8 << 20
MAX_PARTS = 10_000  # that S3 allows
CHUNK_BYTES = 1 << 20
ANYTHING = "anything"  # no tag: those of a server are in quotes
BROKEN_OFF = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
HINT = "S3 is reached as AWS_ENDPOINT_URL, AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say."


REFUSALS = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "NoSuchUpload")


class UnconditionalServerError(UserError):
    """Report that a server cannot write under a condition."""

    def __init__(self) -> None:
        super().__init__("This server has no conditional writes.")


class _RefusedError(Exception):
    """Report that an object is not as the condition of a write says."""


@cache
def client(endpoint_url: str | None = None, region: str | None = None, attempts: int = ATTEMPTS) -> Any:
    """Return this process's client of a server, which its threads may share, and which repeats what fails.

    Two threads that ask first may make two; each has a session of its own, as boto3's default one is not thread-safe.
    """
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=CONNECTIONS,
        # From 1.36 on botocore sends and expects checksums that stores other than Amazon's may not know.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return Session().client("s3", endpoint_url=endpoint_url, region_name=region, config=config)


@cache
def _threads() -> ThreadPoolExecutor:
    """Return the threads that move parts of any number of files: no more than there are connections."""
    return ThreadPoolExecutor(CONNECTIONS)


# A forked process that went on with its parent's connections would read the parent's answers (s3fs issue 369), and it
# has none of its threads.
os.register_at_fork(after_in_child=client.cache_clear)
os.register_at_fork(after_in_child=_threads.cache_clear)


def list_uris(uri: str, *server: str | None, is_deep: bool = True) -> Iterator[str]:
    """Yield the addresses of all objects whose address begins with `uri`, sorted by their UTF-8 bytes.

    `server` is what `client` takes. Unless `is_deep`, objects whose address goes on with a slash later than `uri` are
    not among them; what they have in common up to this slash is, once.

    Raises:
        UserError: when the bucket cannot be listed.
    """
    bucket, prefix = split(uri)
    delimiter = {} if is_deep else {"Delimiter": "/"}
    with explained(uri, *server):
        pages = client(*server).get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, **delimiter):
            keys = [item["Key"] for item in page.get("Contents", [])]
            keys += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
            yield from (f"{SCHEME}{bucket}/{key}" for key in keys)


def read(uri: str, *server: str | None) -> bytes:
    """Return the content of an object; `server` is what `client` takes.

    Raises:
        FileNotFoundError: when there is no such object.
        PermissionError: when this object may not be read.
        UserError: when nothing can be read here.
    """
    with explained(uri, *server):
        content: bytes = _persist(_get(uri, *server), lambda answer: answer["Body"].read())
    return content


class Seen(NamedTuple):
    """What an object holds, the tag that it has until it is written again, and how long ago it was written.

    The age is by the server's own clock, in whole seconds.
    """

    content: bytes
    tag: str
    age_s: float


def look(uri: str, *server: str | None) -> Seen:
    """Return content, tag and age of an object; raises what `read` does."""

    def see(answer: Any) -> Seen:
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        age = now - answer["LastModified"]
        return Seen(answer["Body"].read(), answer["ETag"], age.total_seconds())

    with explained(uri, *server):
        return _persist(_get(uri, *server), see)


def touch(uri: str, *server: str | None) -> None:
    """Begin to read an object and leave off; raises what `read` does."""
    with explained(uri, *server):
        _get(uri, *server)()["Body"].close()


def sha256_at_upload(uri: str, *server: str | None) -> str | None:
    """Return the sha256 that `upload` left with an object, or None where there is none or its size is another.

    Raises what `read` does.
    """
    with explained(uri, *server):
        answer = client(*server).head_object(**_names(uri))
    sha256: str | None = answer["Metadata"].get("sha256")
    return sha256 if answer["Metadata"].get("bytes") == str(answer["ContentLength"]) else None


def put(uri: str, data: bytes, *server: str | None, over: str | None = ANYTHING, is_hasty: bool = False) -> str | None:
    """Write an object and return its tag.

    Args:
        uri: its address.
        data: its content.
        *server: what `client` takes.
        over: write only over the content with this tag, or only where there is nothing if None; return None if that
            is not so. A request that is repeated as its answer was lost may be refused for what it wrote itself.
        is_hasty: try once.

    Raises:
        UnconditionalServerError: when the server knows no such condition.
        UserError: when nothing can be written.
    """
    with explained(uri, *server):
        s3 = client(*server, attempts=1) if is_hasty else client(*server)
        try:
            tag: str = _write(partial(s3.put_object, **_names(uri), Body=data), over)["ETag"]
        except _RefusedError:
            return None
    return tag


def upload(path: Path, uri: str, *server: str | None, sha256: str, advance: Callable[[int], object]) -> None:
    """Write a file to an object, which appears whole or not at all, several parts at a time.

    `advance` is told how many bytes went; if it raises, the upload ends. Beside the content the object keeps the
    file's sha256, for `sha256_at_upload`. `server` is what `client` takes.

    What the object held at the first call of `advance` is all that is written over, so a request that is late, or
    repeated late, does no harm; a server without conditional writes does not see to it.

    Raises:
        OSError: when this object may not be read.
        UserError: when nothing can be written, or another wrote the object meanwhile.
    """
    num_bytes = path.stat().st_size
    metadata = {"sha256": sha256, "bytes": str(num_bytes)}
    s3 = client(*server)
    over = _tag(uri, *server)
    advance(0)

    def write(request: Callable[..., Any]) -> None:
        try:
            _write(request, over)
        except UnconditionalServerError:
            request()
        except _RefusedError:
            with suppress(FileNotFoundError):
                if sha256_at_upload(uri, *server) == sha256:  # a request of ours arrived, though its answer did not
                    return
            raise UserError(f"{uri}: somebody else writes this version. Run again.") from None

    with explained(uri, *server):
        if num_bytes <= PART_BYTES:
            write(partial(s3.put_object, **_names(uri), Body=path.read_bytes(), Metadata=metadata))
            advance(num_bytes)
            return
        begun = _names(uri) | {"UploadId": s3.create_multipart_upload(**_names(uri), Metadata=metadata)["UploadId"]}

        def send(number: int, start: int, length: int) -> dict[str, str | int]:
            with path.open("rb") as file:
                file.seek(start)
                answer = s3.upload_part(**begun, PartNumber=number, Body=file.read(length))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            parts = {"Parts": _each_part(num_bytes, send, advance)}
            write(partial(s3.complete_multipart_upload, **begun, MultipartUpload=parts))
        except BaseException:
            with suppress(ClientError, BotoCoreError):
                client(*server, attempts=1).abort_multipart_upload(**begun)
            raise


def download(uri: str, path: Path, *server: str | None) -> None:
    """Write the content of an object to a file, several ranges at a time; `server` is what `client` takes.

    Raises:
        OSError: what `read` does, or when the file cannot be written.
        UserError: when nothing can be read here.
    """
    with explained(uri, *server):
        num_bytes = client(*server).head_object(**_names(uri))["ContentLength"]
        path.write_bytes(b"")

        def fill(number: int, start: int, length: int) -> None:
            def keep(answer: Any) -> None:
                with path.open("r+b") as file:
                    file.seek(start)
                    shutil.copyfileobj(answer["Body"], file, CHUNK_BYTES)

            _persist(_get(uri, *server, Range=f"bytes={start}-{start + length - 1}"), keep)

        _each_part(num_bytes, fill)


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
        is_read = error.operation_name in ("GetObject", "HeadObject")
        if code == "NoSuchKey" or (is_read and code == "404"):  # the answer to HEAD has no more than a number
            raise FileNotFoundError(f"{uri}: no such object") from error
        if is_read and code in ("AccessDenied", "InvalidObjectState", "403"):
            raise PermissionError(f"{uri}: {message}") from error
        if code == "404":
            where = client(*server).meta.endpoint_url
            raise UserError(f"{uri}: what answers at {where} is no S3 server. {HINT}") from error
        if code == "NoSuchBucket":
            where = client(*server).meta.endpoint_url
            raise UserError(f"{uri}: no such bucket at {where}. AWS_ENDPOINT_URL names another server.") from error
        raise UserError(f"{uri}: {code}: {message.rstrip('.')}. {HINT}") from error
    except (BotoCoreError, ValueError) as error:  # botocore reports a malformed AWS_ENDPOINT_URL as a ValueError
        raise UserError(f"{uri}: {str(error).rstrip('.')}. {HINT}") from error


def _names(uri: str) -> dict[str, str]:
    return dict(zip(("Bucket", "Key"), split(uri), strict=True))


def _get(uri: str, *server: str | None, **options: str) -> Callable[[], Any]:
    """Return the request for an object; a thread makes it with the client of its process."""
    return lambda: client(*server).get_object(**_names(uri), **options)


def _tag(uri: str, *server: str | None) -> str | None:
    """Return the tag of an object, or None where there is none; raises what `read` does."""
    with suppress(FileNotFoundError), explained(uri, *server):
        tag: str = client(*server).head_object(**_names(uri))["ETag"]
        return tag
    return None


def _write(request: Callable[..., Any], over: str | None) -> Any:
    """Make a request that writes an object over the content with this tag, as `put` says, and return the answer.

    Raises:
        UnconditionalServerError: when the server knows no such condition.
        _RefusedError: when the object is not so.
    """
    condition = {} if over == ANYTHING else {"IfMatch": over} if over else {"IfNoneMatch": "*"}
    try:
        return request(**condition)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if condition and code == "NotImplemented":
            raise UnconditionalServerError from error
        if condition and code in REFUSALS:
            raise _RefusedError from error
        raise


def _each_part(
    num_bytes: int, work: Callable[[int, int, int], T], advance: Callable[[int], object] = lambda num_bytes: None
) -> list[T]:
    """Do the work on each part of so many bytes, in the threads of this process, and return what it gives in order.

    The work takes the part's number, from 1 on, its start and its length; `advance` is told the length of those that
    are done. When an error is raised none of the work goes on.
    """
    size = max(PART_BYTES, -(-num_bytes // MAX_PARTS))
    lengths = [min(size, num_bytes - start) for start in range(0, num_bytes, size)]
    parts = {
        _threads().submit(work, number + 1, number * size, length): length for number, length in enumerate(lengths)
    }
    try:
        for part in as_completed(parts):
            part.result()
            advance(parts[part])
    finally:
        wait([part for part in parts if not part.cancel()])
    return [part.result() for part in parts]


def _persist(request: Callable[[], Any], use: Callable[[Any], T]) -> T:
    """Return what `use` makes of the answer; ask again, after a while that grows, when the body breaks off under it.

    The request itself is repeated by botocore, and what fails in spite of that is not tried again.
    """
    for number in range(1, ATTEMPTS):
        answer = request()
        try:
            return use(answer)
        except BROKEN_OFF:
            time.sleep(random.SystemRandom().uniform(0, 0.25 * 2**number))
    return use(request())
