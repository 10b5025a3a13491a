"""What comes of a look at the registry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flatfix.inference.package import DamagedPackageError

SWAPPED, UNCHANGED, NOT_FOUND = "swapped", "unchanged", "not_found"
REGISTRY_UNREACHABLE, FETCH_FAILED, DAMAGED = "registry_unreachable", "fetch_failed", "damaged"
LOAD_FAILED, WRONG_ANSWERS = "load_failed", "wrong_answers"
OUTCOMES = (SWAPPED, UNCHANGED, NOT_FOUND, REGISTRY_UNREACHABLE, FETCH_FAILED, DAMAGED, LOAD_FAILED, WRONG_ANSWERS)
UNDER_WAY = "under_way"  # said to whoever asked for a look and cannot wait for what comes of it


@dataclass(frozen=True, slots=True)
class Outcome:
    """Say what came of a look at the registry.

    Attributes:
        word: one of `OUTCOMES`, or `UNDER_WAY`.
        version: that it is about: the one that answers, or the one that could not be made to.
        reason: in words, where there is something to say.
        is_fault: whether the server answers otherwise than the registry says, or cannot know.
    """

    word: str
    version: int | None = None
    reason: str | None = None
    is_fault: bool = False


class FailedError(Exception):
    """Carry the outcome of a look that failed up to where it is told."""

    def __init__(self, word: str, version: int | None, reason: str) -> None:
        super().__init__(reason)
        self.outcome = Outcome(word, version, reason, is_fault=True)


class StoppedError(Exception):
    """Leave what is under way, because the server stops."""


@contextmanager
def failing(word: str, version: int) -> Iterator[None]:
    """Turn whatever goes wrong in the block into `FailedError`."""
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:  # a package may be anything, and a runtime or an artifact store raise whatever they like
        is_damaged = word == FETCH_FAILED and isinstance(error, DamagedPackageError)
        raise FailedError(DAMAGED if is_damaged else word, version, str(error) or type(error).__name__) from error
