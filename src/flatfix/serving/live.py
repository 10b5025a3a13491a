"""The model that answers, and how the server is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from flatfix.inference.predictor import Predictor

Status = Literal["starting", "ok", "degraded"]
LAST_GOOD = "last good"


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One version of the registered model, loaded and proven.

    Attributes:
        predictor: that answers.
        name: of the registered model.
        version: its number.
        run_id: the run that trained it.
        alias: that is followed.
        found_by: how it was chosen: the alias that named it, `newest`, or `last good`.
        since: when it went live here, UTC.
    """

    predictor: Predictor
    name: str
    version: int
    run_id: str
    alias: str
    found_by: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Health:
    """Say how the server is.

    Attributes:
        status: `ok`; `degraded`, when it answers, but not as the registry says, or cannot ask it; `starting`, before
            there is a model.
        reasons: in words, for people; a server that is `ok` can have some, such as that its alias is empty.
    """

    status: Status
    reasons: tuple[str, ...] = ()


class Live:
    """Hold the model that answers, for any number of threads.

    A request takes `current` once and stays with it, so that nothing of its answer is another version's.

    Attributes:
        current: None before there is one.
    """

    def __init__(self) -> None:
        self.current: Served | None = None  # one name, bound anew: whoever reads it sees the one or the other
        self._told: tuple[str | None, bool] = (None, False)

    def swap(self, served: Served) -> None:
        """Let another model answer from now on."""
        self.current = served

    def tell(self, reason: str | None, *, is_degraded: bool = False) -> None:
        """Say what there is to say of the model that answers, or of the lack of one; None for nothing."""
        self._told = (reason, is_degraded)

    def state(self) -> Health:
        """Return how the server is now."""
        reason, is_degraded = self._told
        reasons = (reason,) if reason else ()
        if self.current is None:
            return Health("starting", reasons)
        return Health("degraded" if is_degraded else "ok", reasons)
