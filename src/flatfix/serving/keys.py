"""API keys: made with `python -m flatfix.serving.keys NAME --file keys.json`, kept as hashes, and checked."""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flatfix.config.exit_codes import ExitCode
from flatfix.config.text import layered
from flatfix.console import complain, say
from flatfix.errors import UserError, one_of
from flatfix.files import replacing
from flatfix.serving.problems import Problem

SCOPES = ("predict", "admin")
KEY_BYTES = 32
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

logger = logging.getLogger("flatfix.serving")


@dataclass(slots=True)
class _Bucket:
    """Lets `per_minute` requests pass at once, and as many a minute in the long run (a token bucket)."""

    per_minute: int
    tokens: float
    when: float

    def wait_s(self, now: float) -> float:
        """Take a token and return 0, or return how long until there is one."""
        self.tokens = min(self.per_minute, self.tokens + (now - self.when) * self.per_minute / 60)
        self.when = now
        if self.tokens < 1:
            return (1 - self.tokens) * 60 / self.per_minute
        self.tokens -= 1
        return 0


@dataclass(frozen=True, slots=True)
class _Key:
    name: str
    sha256: bytes
    scopes: frozenset[str]
    bucket: _Bucket | None


class Keys:
    """Know who may ask for what.

    The file maps a name to `{sha256: hex, scopes: [predict, admin], per_minute: 600 or null}`, in JSON or YAML. It is
    read again when it changes; while it cannot be read, the keys of before hold. A key is 256 random bits, which nobody
    guesses: so a plain SHA-256 keeps it as safe as a slow password hash would, and takes microseconds.

    Rates are counted a process: with several workers, a key may do `per_minute` in each.
    """

    def __init__(self, path: Path, keys: Sequence[_Key], stamp: tuple[int, int, int]) -> None:
        self._path = path
        self._keys = keys
        self._stamp = stamp

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of keys.

        Raises:
            UserError: for a file that is missing, or holds something else; it names the key and its fault.
        """
        stamp = _stamp_of(path)
        return cls(path, _read(path, {}), stamp)

    def check(self, authorization: str | None, scope: str) -> str:
        """Return the name of the key in a header `Authorization: Bearer KEY`, when it is good for a scope.

        Every key is compared, in constant time: how long it takes tells nothing about them.

        Raises:
            Problem: 401 without a key that is known, 403 for a key without the scope, 429 for one that is used up.
        """
        self._refresh()
        scheme, _, given = (authorization or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode(errors="surrogatepass")).digest()
        found: _Key | None = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None or scheme.lower() != "bearer":
            detail = "This needs a key: send the header `Authorization: Bearer KEY`."
            headers = {"WWW-Authenticate": "Bearer"}
            raise Problem(401, "No valid key", detail, reason="no_key", headers=headers)
        if scope not in found.scopes:
            raise Problem(403, "Not allowed", f"This key is not for the scope {scope!r}.", reason="forbidden")
        wait_s = found.bucket.wait_s(time.monotonic()) if found.bucket else 0
        if found.bucket and wait_s > 0:
            detail = f"This key is good for {found.bucket.per_minute} requests a minute."
            headers = {"Retry-After": str(math.ceil(wait_s))}
            raise Problem(429, "Too many requests", detail, reason="rate_limited", headers=headers)
        return found.name

    def _refresh(self) -> None:
        try:
            stamp = _stamp_of(self._path)
        except UserError:
            stamp = (0, 0, 0)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # whatever comes of it: a broken file is not read at each request
        try:
            self._keys = _read(self._path, {key.name: key for key in self._keys})
        except UserError as error:
            logger.error("keys_not_read", extra={"fields": {"reason": str(error)}})
        else:
            logger.info("keys_read", extra={"fields": {"num_keys": len(self._keys)}})


def _stamp_of(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(
            f"auth.keys={path}: cannot be read ({error.strerror}). Make it with python -m flatfix.serving.keys NAME "
            f"--file {path}"
        ) from error
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load(path: Path) -> dict[str, Any]:
    try:
        found = layered(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"auth.keys={path}: cannot be read ({error})") from error
    if not isinstance(found, Mapping):
        raise UserError(f"auth.keys={path}: has to map names to keys")
    return {str(name): facts for name, facts in found.items()}


def _read(path: Path, before: Mapping[str, _Key]) -> list[_Key]:
    """Read the keys; one whose rate is as before goes on with what is left of it."""
    keys = []
    for name, facts in _load(path).items():
        place = f"auth.keys={path}: {name}"
        if not isinstance(facts, Mapping) or set(facts) - {"sha256", "scopes", "per_minute"}:
            raise UserError(f"{place}: has to be {{sha256: …, scopes: [{', '.join(SCOPES)}], per_minute: …}}")
        sha256, scopes, per_minute = str(facts.get("sha256")), facts.get("scopes"), facts.get("per_minute")
        if not _SHA256.fullmatch(sha256):
            raise UserError(f"{place}: sha256 has to be 64 hexadecimal digits, of the SHA-256 of the key")
        if isinstance(scopes, str) or not isinstance(scopes, Sequence) or not scopes:
            raise UserError(f"{place}: scopes has to be a list of {', '.join(SCOPES)}")
        if per_minute is not None and (
            isinstance(per_minute, bool) or not isinstance(per_minute, int) or per_minute < 1
        ):
            raise UserError(f"{place}: per_minute has to be a whole number from 1 on, or null for no limit")
        known = frozenset(one_of(f"{place}: scopes", str(scope), SCOPES) for scope in scopes)
        bucket = _Bucket(per_minute, per_minute, time.monotonic()) if per_minute else None
        old = before[name].bucket if name in before else None
        if bucket and old and old.per_minute == per_minute:
            bucket = old
        keys.append(_Key(name, bytes.fromhex(sha256), known, bucket))
    return keys


def add(path: Path, name: str, scopes: Sequence[str], per_minute: int | None) -> str:
    """Make a key, add its hash to a file that only its owner can read, and return it.

    Raises:
        UserError: for a name that is taken or holds odd characters, and for a file that holds something else.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r}: a name has 1 to 64 letters, digits, '.', '_' or '-'")
    if per_minute is not None and per_minute < 1:
        raise UserError(f"--per-minute {per_minute}: must be at least 1")
    entries: dict[str, Any] = {}
    if path.exists():
        _read(path, {})
        entries = {known: {**facts, "scopes": list(facts["scopes"])} for known, facts in _load(path).items()}
    if name in entries:
        raise UserError(f"{name}: {path} has a key of this name. Remove it there to revoke it, or choose another name")
    key = secrets.token_urlsafe(KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    entries[name] = {"sha256": digest, "scopes": list(dict.fromkeys(scopes)), "per_minute": per_minute}
    with replacing(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(entries, indent=2) + "\n")
    return key


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    """Make a key: print it, once, and keep its hash."""
    parser = argparse.ArgumentParser(prog="python -m flatfix.serving.keys", description=main.__doc__)
    parser.add_argument("name", metavar="NAME", help="whose key it is; logs show it")
    parser.add_argument("--file", type=Path, required=True, help="of the keys, as auth.keys names it")
    parser.add_argument("--scope", action="append", choices=SCOPES, help="what it is for; default predict; repeatable")
    parser.add_argument("--per-minute", type=int, help="most requests a minute, in each worker; default no limit")
    options = parser.parse_args(arguments)
    try:
        key = add(options.file, options.name, options.scope or ["predict"], options.per_minute)
    except UserError as error:
        complain(str(error))
        return ExitCode.USAGE
    say(key)
    complain(f"This is the only time that the key is shown; {options.file} holds its SHA-256.")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
