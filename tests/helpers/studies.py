"""Studies as sweeps leave them, without trainings."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from flatfix.sweeps.trials import GIVEN_BACK, OUTCOME, REASON, RETRY_HISTORY, RUN_ID, Outcome

LR = FloatDistribution(1e-4, 3e-2, log=True)
SPACE: dict[str, BaseDistribution] = {
    "optimizer.lr": LR,
    "optimizer.weight_decay": FloatDistribution(1e-4, 0.3, log=True),
    "loss.label_smoothing": FloatDistribution(0.0, 0.2),
    "dataset.batch_size": CategoricalDistribution([32, 64, 128]),
    "model": CategoricalDistribution(["resnet18", "efficientnet_b0", "cnn"]),
    "augment.depth": IntDistribution(1, 5),
}
_BEGIN = datetime(2026, 11, 22, 9, 0)


def empty(directions: Sequence[str] = ("maximize",), name: str = "tires") -> Study:
    storage = optuna.storages.InMemoryStorage()
    return optuna.create_study(study_name=name, directions=list(directions), storage=storage)


def add(
    study: Study,
    state: str = "complete",
    values: Sequence[float] = (),
    *,
    params: Mapping[str, Any] | None = None,
    space: Mapping[str, BaseDistribution] = SPACE,
    epochs: int = 0,
    seconds: float | None = None,
    reported: Mapping[int, float] | None = None,
    reason: str = "",
    retry_of: Sequence[int] = (),
    **attributes: Any,
) -> int:
    """Add a trial, with what its job and its sweeper keep of it, and return its number."""
    number = len(study.trials)
    outcome = Outcome(
        state="complete" if state == "complete" else "pruned" if state == "pruned" else "failed",
        values=list(values),
        reason=reason,
        epochs=epochs,
        seconds=10 * epochs if seconds is None else seconds,
    )
    user = {RUN_ID: f"{number:032x}", **({OUTCOME: outcome.to_json()} if state != "running" else {}), **attributes}
    if reason:
        user[REASON] = reason
    params = dict(params or {})
    trial = create_trial(
        state=TrialState[{"failed": "FAIL"}.get(state, state.upper())],
        values=list(values) or None,
        params=params,
        distributions={name: space[name] for name in params},
        intermediate_values=dict(reported or {}),
        user_attrs=user,
        system_attrs={RETRY_HISTORY: list(retry_of)} if retry_of else {},
    )
    trial.datetime_start = _BEGIN + timedelta(minutes=number)
    if state != "running":
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=outcome.seconds)
    study.add_trial(trial)
    return number


def searched(num_trials: int = 24, directions: Sequence[str] = ("maximize",), epochs: int = 10, seed: int = 0) -> Study:
    """Return what a sweep with pruning left: some trials pruned, one failed, one tried again, one given back."""
    draws = random.Random(seed)
    study = empty(directions)
    for number in range(num_trials):
        params = _drawn(draws)
        quality = (
            0.93
            - 0.08 * abs(math.log10(params["optimizer.lr"] / 2e-3)) ** 1.5
            - 0.2 * params["loss.label_smoothing"] * (params["model"] == "cnn")
        )
        quality += {"resnet18": 0.01, "efficientnet_b0": 0.02, "cnn": -0.05}[params["model"]] + draws.gauss(0, 0.006)
        curve = {epoch: quality - 0.4 * 0.6**epoch + draws.gauss(0, 0.008) for epoch in range(1, epochs + 1)}
        if number == 5:
            add(study, "failed", params=params, epochs=1, reason="RuntimeError: CUDA out of memory. Tried to allocate")
        elif number == 9:
            add(study, "failed", params=params, epochs=3, reason="killed by SIGKILL", reported={1: 0.5, 2: 0.6, 3: 0.7})
        elif number > 5 and draws.random() < 0.55 and len(directions) == 1:
            end = draws.choice([1, 1, 2, 3, 5])
            add(study, "pruned", params=params, epochs=end, reported={e: curve[e] for e in range(1, end + 1)})
        else:
            milliseconds = {"resnet18": 4.0, "efficientnet_b0": 9.0, "cnn": 1.1}[params["model"]] * draws.uniform(
                1, 1.4
            )
            values = [max(curve.values()), milliseconds][: len(directions)]
            retry_of = [9] if number == 10 else ()
            add(study, "complete", values, params=params, epochs=epochs, reported=curve, retry_of=retry_of)
    add(study, "failed", **{GIVEN_BACK: True})
    return study


def _drawn(draws: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, space in SPACE.items():
        if isinstance(space, CategoricalDistribution):
            found[name] = draws.choice(space.choices)
        elif isinstance(space, IntDistribution):
            found[name] = draws.randint(space.low, space.high)
        elif space.log:
            found[name] = math.exp(draws.uniform(math.log(space.low), math.log(space.high)))
        else:
            found[name] = draws.uniform(space.low, space.high)
    return found
