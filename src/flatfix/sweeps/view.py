"""A study as its figures see it: what can be drawn, under short names."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Self

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from flatfix.evaluation.wording import told_apart
from flatfix.sweeps.table import Row, rows

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

Space = CategoricalDistribution | FloatDistribution | IntDistribution

_MAX_NAME = 22  # characters of a parameter's name in a figure


@dataclass(frozen=True, eq=False)
class View:
    """What the figures draw.

    Attributes:
        objectives: names of the objectives.
        signs: for each objective 1 where less is better, -1 where more is.
        rows: all trials by number; the parameters under short names, without those that have but one value.
        spaces: short name → where its values were looked for; only of parameters that a complete trial has.
        curves: trial → (epoch, value) of what it reported, without what is nan or infinite.
        study: the same in the form in which Optuna's own functions take it, with nothing else in it.
    """

    objectives: tuple[str, ...]
    signs: tuple[int, ...]
    rows: list[Row]
    spaces: dict[str, Space]
    curves: dict[int, list[tuple[int, float]]]
    study: Study

    @classmethod
    def of(cls, study: Study, objectives: Sequence[str]) -> Self:
        """Look at a study once: others may go on with it."""
        trials = study.get_trials(deepcopy=False)
        table = rows(study)
        has_result = {name for row in table if row.state == "complete" for name in row.params}
        spaces = {name: space for name, space in _spaces(trials).items() if name in has_result}
        short = dict(zip(spaces, short_names(spaces), strict=True))
        table = [_shown(row, short) for row in table]
        curves = {
            trial.number: [(epoch, v) for epoch, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)]
            for trial in trials
        }
        view = cls(
            objectives=tuple(objectives),
            signs=tuple(1 if direction.name == "MINIMIZE" else -1 for direction in study.directions),
            rows=table,
            spaces={short[name]: space for name, space in spaces.items()},
            curves=curves,
            study=optuna.create_study(
                study_name=study.study_name, directions=study.directions, storage=optuna.storages.InMemoryStorage()
            ),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            view.study.set_metric_names([label(name) for name in objectives])
        by_number = {row.number: row for row in table}
        view.study.add_trials(_copy(trial, by_number.get(trial.number), view) for trial in trials)
        return view

    @property
    def complete(self) -> list[Row]:
        """Return the complete trials."""
        return [row for row in self.rows if row.state == "complete"]

    @cached_property
    def importances(self) -> list[dict[str, float]]:
        """Return, for each objective, parameter → the share of the variance that it explains, the largest first.

        From fANOVA: a forest fitted to the complete trials (proceedings.mlr.press/v32/hutter14). It judges no parameter
        that only some trials have. An objective that is the same in all trials has no shares.
        """
        found: list[dict[str, float]] = []
        for index in range(len(self.objectives)):
            if len({row.values[index] for row in self.complete}) < 2:
                found.append({})
                continue
            target: Callable[[FrozenTrial], float] = partial(_value, index=index)
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            shares = optuna.importance.get_param_importances(self.study, evaluator=evaluator, target=target)
            found.append({name: float(share) for name, share in shares.items()})
        return found

    @property
    def judged(self) -> list[str]:
        """Return the parameters whose importance is known, the most important first."""
        names = {name for shares in self.importances for name in shares}
        return sorted(names, key=lambda name: (-sum(shares.get(name, 0) for shares in self.importances), name))


def label(objective: str) -> str:
    """Return how figures name an objective."""
    words = {"latency_ms": "ms a picture", "num_parameters": "parameters of the model"}
    metric = {"f1": "F1", "auroc": "AUROC"}.get(objective, objective)
    return words.get(objective, f"validation {metric}")


def short_names(options: Iterable[str]) -> list[str]:
    """Return `lr` for `optimizer.lr`, where nothing else ends in `lr`; a long name loses its middle."""
    options = list(options)
    ends = Counter(option.rpartition(".")[2] for option in options)
    last = [option.rpartition(".")[2] for option in options]
    return told_apart([end if ends[end] == 1 else name for end, name in zip(last, options, strict=True)], _MAX_NAME)


def _spaces(trials: Sequence[FrozenTrial]) -> dict[str, Space]:
    """Return option → where it was looked for; whoever continued a sweep may have moved the bounds."""
    found: dict[str, Space] = {}
    for trial in trials:
        for name, space in trial.distributions.items():
            assert isinstance(space, Space)
            found[name] = _joined(found[name], space) if name in found else space
    return {name: space for name, space in found.items() if not space.single()}


def _joined(one: Space, other: Space) -> Space:
    if (
        isinstance(one, CategoricalDistribution) or isinstance(other, CategoricalDistribution) or one == other
    ):  # Optuna lets nobody change choices
        return one
    low, high = min(one.low, other.low), max(one.high, other.high)
    if isinstance(one, IntDistribution):
        return IntDistribution(int(low), int(high), log=one.log and other.log)
    return FloatDistribution(low, high, log=one.log and other.log)


def _shown(row: Row, short: Mapping[str, str]) -> Row:
    is_drawn = all(map(math.isfinite, row.values))
    return Row(
        number=row.number,
        state=row.state if is_drawn else "failed",
        values=row.values if is_drawn else (),
        params={short[name]: value for name, value in row.params.items() if name in short},
        epochs=row.epochs,
        seconds=row.seconds,
        run_id=row.run_id,
        reason=row.reason,
    )


def _copy(trial: FrozenTrial, row: Row | None, view: View) -> FrozenTrial:
    """Return a trial of the same number that holds what is drawn of it; nothing where nothing is."""
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    if row is None or row.state not in states:
        return create_trial(state=TrialState.FAIL)
    copy = create_trial(
        state=states[row.state],
        values=list(row.values) or None,
        params=dict(row.params),
        distributions={name: view.spaces[name] for name in row.params},
        intermediate_values=dict(view.curves[trial.number]),
    )
    copy.datetime_start, copy.datetime_complete = trial.datetime_start, trial.datetime_complete
    return copy


def _value(trial: FrozenTrial, index: int) -> float:
    return float(trial.values[index])
