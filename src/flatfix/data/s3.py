"""Objects in S3, or in any store that speaks its protocol: list and read.

Address, region and credentials are had as every AWS tool has them: from the environment (`AWS_ENDPOINT_URL`,
`AWS_PROFILE`, `AWS_ACCESS_KEY_ID` …), the files of `~/.aws`, or the machine's role.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

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

SCHEME = "s3://"
CONNECTIONS = 16  # that one process keeps open: how many threads can read at a time
ATTEMPTS = 5
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
BROKEN_OFF = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
HINT = "S3 is reached as AWS_ENDPOINT_URL, AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say."


@cache
def client() -> Any:
    """Return this process's client, which its threads may share.

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
    return Session().client("s3", config=config)


# A forked process that went on with its parent's connections would read the parent's answers (s3fs issue 369).
os.register_at_fork(after_in_child=client.cache_clear)


def list_uris(uri: str) -> Iterator[str]:
    """Yield the addresses of all objects whose address begins with `uri`, sorted by their UTF-8 bytes.

    Raises:
        UserError: when the bucket cannot be listed.
    """
    bucket, prefix = split(uri)
    with explained(uri):
        for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            yield from (f"{SCHEME}{bucket}/{item['Key']}" for item in page.get("Contents", []))


def read(uri: str) -> bytes:
    """Return the content of an object.

    Raises:
        FileNotFoundError: when there is no such object.
        PermissionError: when this object may not be read.
        UserError: when nothing can be read here.
    """
    bucket, key = split(uri)
    with explained(uri):
        for _ in range(ATTEMPTS - 1):
            # botocore repeats a request that fails, but does not read a body again that breaks off.
            try:
                return _read(bucket, key)
            except BROKEN_OFF:
                continue
        return _read(bucket, key)


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
def explained(uri: str) -> Iterator[None]:
    """Raise what goes wrong with `uri` as an OSError where it concerns one object, else as a UserError."""
    try:
        yield
    except ClientError as error:
        code, message = (error.response["Error"].get(name, "") for name in ("Code", "Message"))
        if code == "NoSuchKey":
            raise FileNotFoundError(f"{uri}: no such object") from error
        if code in ("AccessDenied", "InvalidObjectState") and error.operation_name == "GetObject":
            raise PermissionError(f"{uri}: {message}") from error
        if code == "NoSuchBucket":
            where = client().meta.endpoint_url
            raise UserError(f"{uri}: no such bucket at {where}. AWS_ENDPOINT_URL names another server.") from error
        raise UserError(f"{uri}: {code}: {message.rstrip('.')}. {HINT}") from error
    except (BotoCoreError, ValueError) as error:  # botocore reports a malformed AWS_ENDPOINT_URL as a ValueError
        raise UserError(f"{uri}: {str(error).rstrip('.')}. {HINT}") from error


def _read(bucket: str, key: str) -> bytes:
    content: bytes = client().get_object(Bucket=bucket, Key=key)["Body"].read()
    return content
