"""What a trial of a study keeps beside its parameters and values: the words under which, and how to read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# User attributes of a trial.
OVERRIDES = "overrides"  # list[str]: what the command line of its job said, without what the sweep added
WORKER = "worker"  # str: the process that looks after it, see `flatfix.sweeps.worker`
RUN_ID = "run_id"  # str: its run in MLflow
FOLDER = "folder"  # str: its folder
OUTCOME = "outcome"  # str: how its training ended, see `Outcome`
REASON = "reason"  # str: why it failed
GIVEN_BACK = "given_back"  # True: it was one more than were asked for, and never ran

OF_ONE_ATTEMPT = (WORKER, RUN_ID, FOLDER, OUTCOME, REASON)

# System attributes. The first is that of Optuna's own retrying, which its dashboard reads.
RETRY_HISTORY = "retry_history"  # list[int]: the trials that this one is another attempt of
DEATHS = "deaths"  # int: how many of them died, rather than being ended on purpose

INTERRUPTED = "interrupted"  # the reason of a trial that was asked to end


@dataclass(frozen=True, slots=True)
class Outcome:
    """Say how the training of a trial ended.

    Attributes:
        state: `failed` for reasons of its own; `died` for one whose process was ended from outside.
        values: of the objectives, in their order; empty unless complete.
        reason: why it failed or died.
        epochs: epochs that were trained.
        seconds: from the start of the job to its end.
    """

    state: Literal["complete", "pruned", "failed", "died"]
    values: Sequence[float] = ()
    reason: str = ""
    epochs: int = 0
    seconds: float = 0.0

    def to_json(self) -> str:
        """Return it as the text of an attribute."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, trial: FrozenTrial) -> Outcome | None:
        """Return what a trial keeps, or None where its training has not ended, or its process could not say."""
        text = trial.user_attrs.get(OUTCOME)
        return cls(**json.loads(text)) if text else None


def replaced(trials: Iterable[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials that were tried again as another one."""
    return {number for trial in trials for number in trial.system_attrs.get(RETRY_HISTORY, [])}


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count among those asked for: neither tried again nor given back."""
    gone = replaced(trials)
    return [trial for trial in trials if trial.number not in gone and not trial.user_attrs.get(GIVEN_BACK)]


def num_finished(trials: Sequence[FrozenTrial]) -> int:
    """Return how many of the trials that count are complete, pruned or failed."""
    return sum(trial.state.is_finished() for trial in counted(trials))
