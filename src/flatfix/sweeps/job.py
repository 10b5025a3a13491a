"""What runs in the process of a job: training, and where it is a trial of a study, its talk with the study."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig

from flatfix.config.exit_codes import ExitCode
from flatfix.config.instantiate import build
from flatfix.errors import UserError
from flatfix.sweeps.trials import INTERRUPTED, Outcome
from flatfix.training.result import RunResult
from flatfix.training.run import train as train_classifier

Config = Mapping[str, Any]


def run(cfg: Config, train: Callable[..., RunResult] = train_classifier) -> RunResult:
    """Train one classifier; where the job is a trial of a study, tell the study how it goes and how it ended.

    Whatever goes wrong is stored with the trial before it is raised again. Only the sweeper changes the trial's state.

    Args:
        cfg: the validated config; `sweep.trial` is the number of the trial, or None.
        train: as `flatfix.training.run.train`.
    """
    if cfg["sweep"]["trial"] is None:
        return train(cfg)
    from flatfix.sweeps.trial_job import TrialJob  # a single run needs no Optuna

    sweeper = HydraConfig.get().sweeper
    job = TrialJob(
        sweeper.storage or cfg["sweep"]["storage"],
        sweeper.study_name or cfg["sweep"]["name"],
        cfg["sweep"]["trial"],
        pruner=build(cfg["pruner"], "pruner"),
        heartbeat_s=cfg["sweep"]["heartbeat_s"],
        folder=cfg["paths"]["run"],
    )
    began = time.monotonic()
    with job.beating():
        try:
            result = train(cfg, report=job.report, began=job.begin)
        except BaseException as error:
            died = not isinstance(error, Exception)  # a signal, rather than a fault of this trial
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            job.end(Outcome("died" if died else "failed", (), reason, job.epochs, time.monotonic() - began))
            raise
        job.end(_outcome(cfg, result, job.epochs, time.monotonic() - began))
    return result


def _outcome(cfg: Config, result: RunResult, epochs: int, seconds: float) -> Outcome:
    if result.exit_code is ExitCode.INTERRUPTED:
        return Outcome("died", (), INTERRUPTED, epochs, seconds)
    if result.is_pruned:
        return Outcome("pruned", (), "", epochs, seconds)
    values = [result.objectives.get(name, math.nan) for name in cfg["sweep"]["objectives"]]
    bad = [
        f"{name} is {value}"
        for name, value in zip(cfg["sweep"]["objectives"], values, strict=True)
        if not math.isfinite(value)
    ]
    if bad:
        return Outcome("failed", (), "; ".join(bad), epochs, seconds)
    return Outcome("complete", values, "", epochs, seconds)
