"""The two pages for people: one to try the model, one that explains the interface. Each is a single file."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

PAGES = ("index.html", "docs.html")

_INLINE = re.compile(rb"<(style|script)>(.*?)</\1>", re.DOTALL)


@cache
def page(name: str) -> tuple[bytes, Mapping[str, str]]:
    """Return the bytes of one of `PAGES`, and the headers it is sent with.

    The Content-Security-Policy (CSP level 3) names the page's own style and script by their sha256 and allows no
    other, pictures from the page's memory, and requests to this server only: what a hostile class name or answer of a
    proxy might smuggle in does not run, nor leave.
    """
    body = (files("flatfix.serving") / "static" / name).read_bytes()
    hashes: dict[bytes, list[str]] = {b"style": [], b"script": []}
    for kind, text in _INLINE.findall(body):
        hashes[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'")
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(hashes[b"script"]),
        "style-src": " ".join(hashes[b"style"]),
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        # Text becomes text, never markup: the page cannot even try (Trusted Types).
        "require-trusted-types-for": "'script'",
    }
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{directive} {value}" for directive, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return body, MappingProxyType(headers)
