"""What a sweep found, what it cost, and what pruning spared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flatfix.evaluation.wording import counted, shortened
from flatfix.sweeps.table import Row, rows

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_MAX_WINNERS = 5  # that the terminal lists
_MAX_REASON = 300  # characters of a failure there
_MAX_TEXT = 40  # characters of a parameter that is a text


@dataclass(frozen=True, slots=True)
class Winner:
    """A trial that no other beats.

    Attributes:
        number: of the trial.
        values: objective → value.
        params: option → value.
        run_id: its run in MLflow.
        command: the line that trains it again.
    """

    number: int
    values: Mapping[str, float]
    params: Mapping[str, Any]
    run_id: str
    command: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a sweep.

    Attributes:
        name: of the sweep.
        objectives: what it looked for.
        winners: the best trial; of two objectives all trials that no other beats in both, by the first objective.
            Empty where no trial is complete.
        num_complete: trials that trained to their end.
        num_pruned: trials that were ended early because others were better.
        num_failed: trials that failed for good.
        num_retried: trials whose process ended before they did, and whose place another took; none of the above.
        num_running: trials that are not over yet.
        epochs: that were trained, those of failed and of retried trials too.
        epochs_saved: that pruned trials had still to train; fewer where early stopping had ended them anyway.
        seconds: that jobs took; jobs side by side each count.
        seconds_saved: an estimate of what these epochs would have taken.
        first_failure: number and reason of the first trial that failed.
    """

    name: str
    objectives: tuple[str, ...]
    winners: tuple[Winner, ...]
    num_complete: int
    num_pruned: int
    num_failed: int
    num_retried: int
    num_running: int
    epochs: int
    epochs_saved: int
    seconds: float
    seconds_saved: float
    first_failure: tuple[int, str] | None

    def lines(self) -> list[str]:
        """Return what the terminal is told."""
        said = [f"sweep {self.name}: {self.counts}", self.costs]
        if self.first_failure:
            number, reason = self.first_failure
            said.append(f"first failure: trial {number}: {shortened(reason, _MAX_REASON)}")
        if not self.winners:
            return [*said, "best: none, for no trial is complete"]
        if len(self.objectives) == 1:
            (best,) = self.winners
            run = f", run {best.run_id}" if best.run_id else ""
            return [
                *said,
                f"best: {describe(best)}{run}",
                f"  {settings(best.params)}",
                "train it again:",
                best.command,
            ]
        said.append(f"beaten by none in both {' and '.join(self.objectives)}: {counted(len(self.winners), 'trial')}")
        for winner in self.winners[:_MAX_WINNERS]:
            said += [f"{describe(winner)}: {settings(winner.params)}", f"  {winner.command}"]
        rest = len(self.winners) - _MAX_WINNERS
        return [*said, f"and {rest} more, which the page of the sweep lists"] if rest > 0 else said

    @property
    def counts(self) -> str:
        """Say how many trials became what."""
        done = self.num_complete + self.num_pruned + self.num_failed
        became = f"{self.num_complete} complete, {self.num_pruned} pruned, {self.num_failed} failed"
        more = {"tried again": self.num_retried, "not over": self.num_running}
        said = [f"{counted(done, 'trial')}: {became}", *(f"{num} {what}" for what, num in more.items() if num)]
        return "; ".join(said)

    @property
    def costs(self) -> str:
        """Say what was trained, and what pruning saved."""
        said = f"trained {counted(self.epochs, 'epoch')} in {duration(self.seconds)} of jobs"
        if not self.epochs_saved:
            return said
        saved = (
            f"{counted(self.epochs_saved, 'epoch')} ({share(self.epochs_saved / (self.epochs + self.epochs_saved))})"
        )
        return f"{said}; pruning saved {saved}, about {duration(self.seconds_saved)}"

    def to_json(self) -> str:
        """Return everything as the text of a file."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, default=str) + "\n"


def summarise(
    study: Study, objectives: Sequence[str], max_epochs: int, command: Callable[[FrozenTrial], str]
) -> Summary:
    """Sum a study up.

    Args:
        study: with the attributes that `flatfix.sweeps.trials` names.
        objectives: their names, in the order of the study's directions.
        max_epochs: of a whole trial; one that tried `trainer.max_epochs` has its own.
        command: returns the line that trains a trial again.
    """
    table = rows(study)
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    signs = [1 if direction.name == "MINIMIZE" else -1 for direction in study.directions]
    left = {
        row.number: max(0, int(row.params.get("trainer.max_epochs", max_epochs)) - row.epochs)
        for row in table
        if row.state == "pruned"
    }
    failed = [row for row in table if row.state == "failed"]
    seconds_an_epoch = _seconds_an_epoch(table)
    return Summary(
        name=study.study_name,
        objectives=tuple(objectives),
        winners=tuple(
            Winner(
                number=row.number,
                values=dict(zip(objectives, row.values, strict=True)),
                params=row.params,
                run_id=row.run_id,
                command=command(trials[row.number]),
            )
            for row in unbeaten(table, signs)
        ),
        num_complete=sum(row.state == "complete" for row in table),
        num_pruned=len(left),
        num_failed=len(failed),
        num_retried=sum(row.state == "retried" for row in table),
        num_running=sum(row.state in ("running", "waiting") for row in table),
        epochs=sum(row.epochs for row in table),
        epochs_saved=sum(left.values()),
        seconds=sum(row.seconds for row in table if not math.isnan(row.seconds)),
        seconds_saved=sum(left[number] * seconds_an_epoch.get(number, 0) for number in left),
        first_failure=(failed[0].number, failed[0].reason or "no reason is known") if failed else None,
    )


def unbeaten(table: Sequence[Row], signs: Sequence[int]) -> list[Row]:
    """Return the best complete trial, of equals the first; of several objectives those that no other beats in all.

    Args:
        table: all trials.
        signs: for each objective 1 where less is better, and -1 where more is.
    """
    complete = [row for row in table if row.state == "complete" and all(map(math.isfinite, row.values))]
    # By the objectives in turn: what comes later can beat nothing before it.
    complete.sort(key=lambda row: [sign * value for sign, value in zip(signs, row.values, strict=True)])
    if len(signs) == 1:
        return complete[:1]
    front: list[Row] = []
    for row in complete:
        costs = np.multiply(signs, row.values)
        if not any((np.multiply(signs, better.values) <= costs).all() for better in front):
            front.append(row)
    return front


def describe(winner: Winner) -> str:
    """Say which trial it is and what it reached."""
    reached = ", ".join(f"{name} {figure(value)}" for name, value in winner.values.items())
    return f"trial {winner.number} with {reached}"


def share(part: float) -> str:
    """Write a part of one: `34 %`, `<1 %`."""
    return "<1 %" if 0 < part < 0.005 else f"{100 * part:.0f} %"


def settings(params: Mapping[str, Any]) -> str:
    """Write parameters as they stand on a command line, numbers in four digits."""
    return " ".join(f"{name}={setting(value)}" for name, value in params.items())


def setting(value: Any) -> str:
    """Write the value of a parameter: a number in four digits, a long text without its middle."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else shortened(str(value), _MAX_TEXT)


def figure(value: float) -> str:
    """Write the value of an objective: 0.8900, 23.41, 11,176,512."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 1 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Write a time: `48 s`, `12 min`, `1 h 12 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _seconds_an_epoch(table: Sequence[Row]) -> dict[int, float]:
    """Return trial → seconds of an epoch of its own, without what every job needs before its first one.

    What a job needs once is the height at which a straight line through seconds over epochs begins.
    """
    timed = [row for row in table if row.epochs and row.seconds > 0]
    if not timed:
        return {}
    epochs, seconds = np.array([[row.epochs, row.seconds] for row in timed], float).T
    once = 0.0
    if len(set(epochs)) > 1:
        slope = np.cov(epochs, seconds)[0, 1] / epochs.var(ddof=1)
        once = float(np.clip(seconds.mean() - slope * epochs.mean(), 0, seconds.min()))
    return {row.number: (row.seconds - once) / row.epochs for row in timed}
