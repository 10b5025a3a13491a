"""A study that is begun, or gone on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage

from flatfix.errors import UserError
from flatfix.sweeps.storage import patiently


def open_study(
    name: str,
    storage: RDBStorage,
    *,
    sampler: BaseSampler | None,
    pruner: BasePruner,
    directions: Sequence[Literal["minimize", "maximize"]],
    space: Mapping[str, BaseDistribution],
) -> tuple[optuna.Study, bool]:
    """Return the study, and whether it was begun now.

    Args:
        name: of the study.
        storage: where it is kept.
        sampler: what chooses the parameters, None for Optuna's own choice.
        pruner: what ends trials early; of two objectives Optuna prunes nothing.
        directions: `minimize` or `maximize` for each objective.
        space: parameters and where they are looked for.

    Raises:
        UserError: the study that is there looked for something else, or elsewhere.
    """
    options: dict[str, Any] = {"sampler": sampler, "pruner": pruner if len(directions) == 1 else NopPruner()}
    try:
        made = patiently(
            lambda: optuna.create_study(study_name=name, storage=storage, directions=list(directions), **options)
        )
        return made, True
    except DuplicatedStudyError:
        pass
    study = patiently(lambda: optuna.load_study(study_name=name, storage=storage, **options))
    held = [f"{direction.name.lower()}" for direction in study.directions]
    if held != list(directions):
        raise UserError(
            f"sweep.name={name}: that study is to {' and '.join(held)}, not to {' and '.join(directions)}. "
            "Take another name, or the objectives it began with."
        )
    for trial in study.get_trials(deepcopy=False):
        for parameter, distribution in space.items():
            before = trial.distributions.get(parameter)
            if before is not None and not _fits(before, distribution):
                raise UserError(
                    f"sweep.name={name}: that study looks for {parameter} in {in_words(before)}, not in "
                    f"{in_words(distribution)}. Take another name, or the space it began with."
                )
    # Its random numbers were drawn before: the same seed would make the same trials once more.
    study.sampler.reseed_rng()
    return study, False


def _fits(before: BaseDistribution, now: BaseDistribution) -> bool:
    """Tell whether Optuna takes both for one parameter: intervals may move, choices may not change."""
    if isinstance(before, CategoricalDistribution) or isinstance(now, CategoricalDistribution):
        return bool(before == now)
    return type(before) is type(now) and before.log == now.log  # type: ignore[attr-defined]


def in_words(distribution: BaseDistribution) -> str:
    """Return where a parameter is looked for."""
    if isinstance(distribution, CategoricalDistribution):
        return f"choice({', '.join(map(str, distribution.choices))})"
    return f"{distribution.low} to {distribution.high}"  # type: ignore[attr-defined]
