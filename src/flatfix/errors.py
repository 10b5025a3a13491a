"""Errors for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Report wrong usage or configuration.

    The message names the option path, what was wrong, the valid choices and the fix: an entry point prints it
    without a traceback and exits with code 2.
    """


class Failure(Exception):
    """Report what went wrong elsewhere, in a message that says all there is to say: a traceback would add nothing.

    An entry point prints it and exits with code 3.
    """


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'adam'?"` for the choice nearest to `word`, or an empty string where none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def enumerated(items: Sequence[str], limit: int = 20) -> str:
    """Return the first items, each on an indented line of its own, and how many more there are."""
    lines = [*items[:limit], *([f"and {len(items) - limit:,} more"] if len(items) > limit else [])]
    return "".join(f"\n  {line}" for line in lines)


def one_of(option: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` when it is among `choices`.

    Raises:
        UserError: naming the option, the choices and the nearest of them.
    """
    known = list(choices)
    if value in known:
        return value
    raise UserError(f"{option}={value}: not a valid choice. Valid: {', '.join(known)}.{did_you_mean(value, known)}")
