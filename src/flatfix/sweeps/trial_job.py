"""The trial of a study, as the process that trains it sees it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import optuna
from optuna.exceptions import OptunaError
from optuna.pruners import BasePruner
from sqlalchemy.exc import DatabaseError

from flatfix.console import complain
from flatfix.sweeps.storage import beating, open_storage, patiently
from flatfix.sweeps.trials import FOLDER, OUTCOME, RUN_ID, WORKER, Outcome
from flatfix.sweeps.worker import this_process


class TrialJob:
    """The trial of a study, as the process that trains it sees it.

    Args:
        storage: address of the database of the study.
        study_name: name of the study.
        number: of the trial.
        pruner: what ends trials early.
        heartbeat_s: seconds between two signs of life.
        folder: of the job.

    Raises:
        UserError: the storage cannot be used.
    """

    def __init__(
        self, storage: str, study_name: str, number: int, *, pruner: BasePruner, heartbeat_s: int, folder: str
    ) -> None:
        self.epochs = 0
        self._pruner = pruner
        self._heartbeat_s = heartbeat_s
        self._storage = open_storage(storage, heartbeat_s)
        # It only looks: its sampler is never asked.
        sampler = optuna.samplers.RandomSampler()
        self._study = patiently(
            lambda: optuna.load_study(study_name=study_name, storage=self._storage, sampler=sampler, pruner=pruner)
        )
        self._trial_id = patiently(
            lambda: self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        )
        self._note(WORKER, this_process())
        self._note(FOLDER, folder)

    def begin(self, run_id: str) -> None:
        """Note the trial's run in MLflow."""
        self._note(RUN_ID, run_id)

    def report(self, epochs: int, value: float) -> bool:
        """Report the monitored metric after so many epochs, and return whether the pruner would end the trial.

        A storage that is away costs the report, never the training.
        """
        self.epochs = epochs
        if len(self._study.directions) > 1:  # Optuna has no values in between for them
            return False
        try:
            self._storage.set_trial_intermediate_value(self._trial_id, epochs, value)
            return bool(self._pruner.prune(self._study, self._storage.get_trial(self._trial_id)))
        except (DatabaseError, OptunaError) as error:
            complain(f"epoch {epochs} is not reported to the study: {error}")
            return False

    def end(self, outcome: Outcome) -> None:
        """Store how the training ended."""
        self._note(OUTCOME, outcome.to_json())

    def beating(self) -> AbstractContextManager[None]:
        """Give a sign of life every `sweep.heartbeat_s` seconds."""
        return beating(self._storage, self._heartbeat_s, lambda: [self._trial_id])

    def _note(self, key: str, value: str) -> None:
        """Store a word with the trial; a database that stays away costs the word, never the training."""
        try:
            patiently(lambda: self._storage.set_trial_user_attr(self._trial_id, key, value))
        except (DatabaseError, OptunaError) as error:
            complain(f"the study does not know the {key} of trial {self._trial_id}: {error}")
