"""Register the best runs of a multirun."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flatfix.errors import enumerated
from flatfix.evaluation.metrics import is_better
from flatfix.registry.register import Registration, register
from flatfix.tracking.connection import connect, told_as_user_error

if TYPE_CHECKING:
    from mlflow.entities import Run

MAX_RUNS = 50_000  # more than MLflow gives at once


def register_best(uri: str, experiment: str, *, sweep: str, metric: str, name: str | None) -> list[Registration]:
    """Register the finished and qualified run of a multirun with the best validation metric; of equals the newest.

    Where its runs were trained on several datasets, whose metrics do not compare, the best run of each.

    Args:
        uri: where MLflow keeps the runs.
        experiment: name of their experiment.
        sweep: what the tag `sweep` of the runs says.
        metric: a key of `METRICS`.
        name: registered model, or None for the name of the dataset.

    Raises:
        UserError: when MLflow does not answer, and as `register` does.
    """
    with told_as_user_error(uri):
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        condition = f"tags.sweep = '{sweep}' and attributes.status = 'FINISHED'"
        runs = client.search_runs([found.experiment_id], condition, max_results=MAX_RUNS) if found else []
    best: dict[str, Run] = {}
    for run in runs:  # the newest first
        digest = run.data.params.get("dataset_digest", "")
        if _is_qualified(run) and (
            digest not in best or is_better(metric, _value(run, metric), than=_value(best[digest], metric))
        ):
            best[digest] = run
    if not best:
        reasons = [f"{run.info.run_name}: {run.data.tags.get('qualification', 'no verdict')}" for run in runs]
        why = f"none of the {len(runs)} finished runs of {sweep} qualified{enumerated(reasons)}"
        return [Registration(None, False, why)]
    return [register(uri, run.info.run_id, name) for run in best.values()]


def _is_qualified(run: Run) -> bool:
    return run.data.tags.get("qualified") == "true"


def _value(run: Run, metric: str) -> float:
    return float(run.data.metrics.get(f"best/{metric}", math.nan))
