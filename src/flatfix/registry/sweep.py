"""Register the best run of a multirun."""

from __future__ import annotations

import math

from flatfix.evaluation.metrics import is_better
from flatfix.registry.register import Registration, register
from flatfix.tracking.connection import connect, told_as_user_error

MAX_RUNS = 50_000  # more than MLflow gives at once


def register_best(uri: str, experiment: str, *, sweep: str, metric: str, name: str | None) -> Registration:
    """Register the finished and qualified run of a multirun with the best validation metric; of equals the newest.

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
    best, best_value = None, math.nan
    for run in runs:  # the newest first
        value = run.data.metrics.get(f"best/{metric}", math.nan)
        if run.data.tags.get("qualified") == "true" and (best is None or is_better(metric, value, best_value)):
            best, best_value = run, value
    if best is None:
        return Registration(None, False, f"none of the {len(runs)} finished runs of {sweep} qualified")
    return register(uri, best.info.run_id, name)
