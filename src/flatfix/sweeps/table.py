"""The trials of a study as rows: what the summary counts, the page lists, and `trials.csv` keeps."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flatfix.files import replacing
from flatfix.sweeps.trials import GIVEN_BACK, REASON, RUN_ID, Outcome, replaced

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

State = Literal["complete", "pruned", "failed", "retried", "running", "waiting"]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One trial.

    Attributes:
        number: of the trial.
        state: `retried` for one whose process ended before it did, and whose place another trial took.
        values: of the objectives, in their order; empty unless complete.
        params: what it tried: option → value.
        epochs: epochs that were trained.
        seconds: that its job took; of a job that is not over, or whose end nobody saw, nan.
        run_id: its run in MLflow; empty when it never got that far.
        reason: why it failed or died, in one line.
    """

    number: int
    state: State
    values: tuple[float, ...]
    params: Mapping[str, Any]
    epochs: int
    seconds: float
    run_id: str
    reason: str


def rows(study: Study) -> list[Row]:
    """Return the trials by number, without those that were given back: they never ran."""
    trials = study.get_trials(deepcopy=False)
    again = replaced(trials)
    return [_row(trial, trial.number in again) for trial in trials if not trial.user_attrs.get(GIVEN_BACK)]


def write_csv(study: Study, objectives: Sequence[str], path: Path) -> None:
    """Write `trials.csv`: a row a trial, the parameters as `params.<option>`; an existing file is replaced.

    What a trial has not is empty: a parameter that it did not try, the objectives of one that is not complete.
    """
    table = rows(study)
    options = sorted({name for row in table for name in row.params})
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        header = [*objectives, *(f"params.{name}" for name in options)]
        writer.writerow(["number", "state", *header, "epochs", "seconds", "run_id", "reason"])
        for row in table:
            values = row.values or [""] * len(objectives)
            params = [row.params.get(name, "") for name in options]
            seconds = "" if math.isnan(row.seconds) else round(row.seconds, 3)
            writer.writerow([row.number, row.state, *values, *params, row.epochs, seconds, row.run_id, row.reason])


def _row(trial: FrozenTrial, is_replaced: bool) -> Row:
    outcome = Outcome.of(trial)
    reason = trial.user_attrs.get(REASON) or (outcome.reason if outcome else "")
    state = _state(trial, is_replaced)
    return Row(
        number=trial.number,
        state=state,
        values=tuple(trial.values) if state == "complete" else (),
        params=dict(trial.params),
        epochs=max([outcome.epochs if outcome else 0, *trial.intermediate_values]),
        seconds=outcome.seconds if outcome and outcome.seconds else _lasted_s(trial),
        run_id=trial.user_attrs.get(RUN_ID, ""),
        reason=" ".join(str(reason).split()),
    )


def _state(trial: FrozenTrial, is_replaced: bool) -> State:
    words: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting"}
    return "retried" if is_replaced else words.get(trial.state.name, "failed")


def _lasted_s(trial: FrozenTrial) -> float:
    if trial.datetime_start is None or trial.datetime_complete is None or trial.state.name == "FAIL":
        return math.nan  # nothing saw a dead trial's end: it was found later
    return float((trial.datetime_complete - trial.datetime_start).total_seconds())
