"""Command lines to copy: the one that goes on with a multirun, and the one that trains a job of it again."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence

from flatfix.tracking.connection import redact

URIS = ("sweep.storage", "hydra.sweeper.storage", "tracking.uri")


def training(overrides: Sequence[str]) -> str:
    """Return the command that trains one job again, alone.

    Args:
        overrides: of the job; what concerns the multirun is left out.
    """
    return _line([word for word in overrides if not re.match(r"(sweep|hydra\.sweeper)\.", word)])


def continuing(name: str) -> str:
    """Return the command of this process, which goes on with the sweep `name` when it is run again."""
    words = sys.argv[1:]
    named = any(word.startswith(("sweep.name=", "hydra.sweeper.study_name=")) for word in words)
    return _line([*words, *([] if named else [f"sweep.name={name}"])])


def without_password(word: str) -> str:
    """Return `option=value` as it may be shown."""
    option, equals, value = word.partition("=")
    if not equals or option.lstrip("+") not in URIS:
        return word
    quote = value[:1] if value[:1] in ("'", '"') else ""
    return f"{option}={quote}{redact(value.strip(quote))}{quote}"


def _line(words: Sequence[str]) -> str:
    return shlex.join(["python", sys.argv[0], *map(without_password, words)])
