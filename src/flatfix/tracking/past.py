"""Runs that MLflow knows of, as whoever goes on with one of them sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatfix.tracking.connection import connect, told_as_user_error

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class PastRun:
    """A run of some process.

    Attributes:
        run_id: in MLflow.
        status: RUNNING, FINISHED, FAILED or KILLED.
        is_in_trash: it was deleted, and can be restored.
        tags: by their names.
    """

    run_id: str
    status: str
    is_in_trash: bool
    tags: Mapping[str, str]


def find(uri: str, run_id: str) -> PastRun | None:
    """Return a run, or None where there is none of that id.

    Raises:
        UserError: MLflow cannot be used.
    """
    with told_as_user_error(uri):
        from mlflow.exceptions import MlflowException

        try:
            return _past(connect(uri).get_run(run_id))
        except MlflowException as error:
            if error.get_http_status_code() != 404:
                raise
            return None


def unfinished(uri: str, experiment_id: str, tag: str, value: str) -> list[PastRun]:
    """Return the runs of an experiment that have a tag of this value and are not FINISHED, the newest first.

    Raises:
        UserError: MLflow cannot be used.
    """
    return _search(uri, experiment_id, f"tags.{tag} = '{value}' and attributes.status != 'FINISHED'")


def finished(uri: str, experiment_id: str, tags: Mapping[str, str]) -> list[PastRun]:
    """Return the runs of an experiment that have these tags and are FINISHED, the newest first.

    Raises:
        UserError: MLflow cannot be used.
    """
    conditions = [f"tags.{tag} = '{value}'" for tag, value in tags.items()]
    return _search(uri, experiment_id, " and ".join([*conditions, "attributes.status = 'FINISHED'"]))


def _search(uri: str, experiment_id: str, condition: str) -> list[PastRun]:
    with told_as_user_error(uri):
        found = connect(uri).search_runs([experiment_id], condition, order_by=["attributes.start_time DESC"])
    return [_past(run) for run in found]


def _past(run: Run) -> PastRun:
    return PastRun(run.info.run_id, run.info.status, run.info.lifecycle_stage != "active", run.data.tags)
