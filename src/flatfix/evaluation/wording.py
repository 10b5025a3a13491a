"""How the report and its figures write numbers and names."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percent(share: float) -> str:
    """Write a share as a percentage with one decimal; an undefined one is a dash."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}\u00a0%"


def counted(number: int, noun: str) -> str:
    """Write a number of things: `1 picture`, `2,000 pictures`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def told_apart(names: Sequence[str], width: int = 24) -> list[str]:
    """Cut the middle out of long names; where that makes two of them alike, all begin with their number."""
    cut = [shortened(name, width) for name in names]
    if len(set(cut)) == len(names):
        return cut
    return [shortened(f"{number} {name}", width) for number, name in enumerate(names)]


def shortened(name: str, width: int = 24) -> str:
    """Cut the middle out of a long name: its beginning and its end tell it from its neighbours."""
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[:half]}…{name[-half:]}"
