"""The MLflow run of a multirun, above the runs of its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatfix.console import complain
from flatfix.errors import UserError
from flatfix.tracking.connection import connect, preflight, told_as_user_error
from flatfix.tracking.run import MAX_TAG_LENGTH, Run, Status

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

MAX_RUNS = 50_000  # more than MLflow gives at once
UNFINISHED = ("RUNNING", "SCHEDULED")


class Parent:
    """One run in MLflow: what the multirun is, the values of its jobs in the order in which they finish, what it found.

    Args:
        uri: where runs are kept.
        experiment_id: of all of them.
        run: the run, started or resumed.
    """

    def __init__(self, uri: str, experiment_id: str, run: Run) -> None:
        self.uri = uri
        self.run = run
        self._experiment_id = experiment_id

    @classmethod
    def begin(
        cls, uri: str, experiment: str, *, name: str, run_id: str | None, folder: Path, params: Mapping[str, Any]
    ) -> Parent:
        """Start the run of a multirun, or go on with it.

        Args:
            uri: where runs are kept.
            experiment: name of the experiment of all of them.
            name: of the multirun.
            run_id: the run to go on with, or None.
            folder: for what waits to be sent.
            params: what the multirun is.

        Raises:
            UserError: MLflow cannot be used, or has no such run.
        """
        experiment_id = preflight(uri, experiment)
        if run_id:
            return cls(uri, experiment_id, Run.resume(uri, run_id, folder))
        run = Run.start(uri, experiment_id, name=name, tags={"sweep": name, "multirun": "true"}, buffer_dir=folder)
        run.log_params(params)
        return cls(uri, experiment_id, run)

    def settle(self, jobs: Mapping[str, str | None]) -> None:
        """Make the runs of jobs say of their end what the multirun knows: their processes may not have come to it.

        An MLflow that does not answer is said to have missed it.

        Args:
            jobs: of each run that has ended, by its id, why it failed; None where its training ended as it should, as
                that of a pruned one did.
        """
        try:
            with told_as_user_error(self.uri):
                client = connect(self.uri)
                for run_id, reason in jobs.items():
                    _settle(client, client.get_run(run_id), reason)
        except UserError as error:
            complain(f"the status of runs in MLflow may be behind: {error}")

    def settle_all(self, jobs: Mapping[str, str | None]) -> None:
        """Settle every run of the multirun; one of which nothing is known has lost its process.

        Args:
            jobs: see `settle`; no job is running any more.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        try:
            with told_as_user_error(self.uri):
                client = connect(self.uri)
                condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run.run_id}'"
                for run in client.search_runs([self._experiment_id], condition, max_results=MAX_RUNS):
                    if run.info.run_id in jobs or run.info.status in UNFINISHED:
                        _settle(client, run, jobs.get(run.info.run_id, "its process died"))
        except UserError as error:
            complain(f"the status of runs in MLflow may be behind: {error}")

    def end(self, status: Status, artifacts: Path | None = None, reason: str | None = None) -> str | None:
        """Send a folder of what the multirun found, and end the run; return what could not be sent, as a sentence."""
        if artifacts is not None:
            self.run.log_artifact(artifacts)
        return self.run.end(status, reason)


def _settle(client: MlflowClient, run: MlflowRun, reason: str | None) -> None:
    status = run.info.status
    if reason is None and status in UNFINISHED:
        client.set_terminated(run.info.run_id, "FINISHED")
    elif reason is not None and (status in UNFINISHED or status == "FINISHED"):
        client.set_tag(run.info.run_id, "status_reason", reason[:MAX_TAG_LENGTH])
        client.set_terminated(run.info.run_id, "FAILED" if status == "FINISHED" else "KILLED")
