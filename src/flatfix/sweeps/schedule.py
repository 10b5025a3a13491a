"""Keep workers busy with the trials of a study until enough have finished, whatever happens to any of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from flatfix.sweeps.storage import beat, beating, patiently
from flatfix.sweeps.trials import (
    DEATHS,
    GIVEN_BACK,
    OF_ONE_ATTEMPT,
    REASON,
    RETRY_HISTORY,
    WORKER,
    Outcome,
    counted,
    num_finished,
)
from flatfix.sweeps.worker import is_gone, this_process

POLL_S = 0.5  # between two looks at a study whose other trials run elsewhere
GRID_POINT = "grid_id"  # system attribute of a trial: the point of the grid that Optuna's GridSampler gave it


class Schedule:
    """The trials of a study, run by as many threads as there are workers; each asks for its next when it is free.

    Several sweepers, here and on other machines, may work on one study: they find one another by the storage. A trial
    counts once, whoever ran it: complete, pruned or failed. One whose process died is tried again as a new trial with
    the same parameters, and does not count.

    Args:
        study: with its sampler and its pruner.
        storage: that of the study.
        configure: gives the trial, which was just asked for, its parameters.
        run: runs the job of a trial, and returns when it has ended; raises only what no trial would outlive.
        n_trials: trials that are to finish.
        workers: jobs at a time.
        heartbeat_s: seconds between two signs of life.
        max_retries: times that a trial is tried again.
        timeout_s: seconds after which no trial begins.
        max_failure_rate: share of failed trials, of all that finished here, above which no trial begins.
        on_finished: is told of each trial that finished here.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: RDBStorage,
        *,
        configure: Callable[[Trial], None],
        run: Callable[[Trial], Outcome],
        n_trials: int,
        workers: int,
        heartbeat_s: int,
        max_retries: int,
        timeout_s: float | None = None,
        max_failure_rate: float = 1.0,
        on_finished: Callable[[FrozenTrial], None] = lambda trial: None,
    ) -> None:
        self.study = study
        self.storage = storage
        self._configure = configure
        self._run = run
        self._n_trials = n_trials
        self._workers = workers
        self._heartbeat_s = heartbeat_s
        self._max_retries = max_retries
        self._deadline = time.monotonic() + timeout_s if timeout_s else None
        self._max_failure_rate = max_failure_rate
        self._on_finished = on_finished
        self._asking = threading.Lock()
        self._stopping = threading.Event()
        self._running: set[int] = set()  # ids of the trials that run here
        self._nameless: set[int] = set()  # ids of those elsewhere that were found without a word of who runs them
        self._num_finished = 0
        self._num_failed = 0
        self.fault: BaseException | None = None
        self.has_given_up = False  # more trials failed than `max_failure_rate` allows
        self.was_last = False  # whether the last of the trials that were asked for was not finished by another sweeper

    def stop(self) -> None:
        """Begin no further trial."""
        self._stopping.set()

    def work(self) -> None:
        """Run trials until enough have finished, or none may begin; those of other sweepers are waited for.

        Raises:
            Exception: what the database or the sampler raised, once the trials that ran have ended.
        """
        self.was_last = self.is_complete
        with beating(self.storage, self._heartbeat_s, lambda: [*self._running]):
            if self._workers == 1:
                self._work()  # in the main thread: a launcher may run its job there
            else:
                with ThreadPoolExecutor(self._workers, thread_name_prefix="worker") as pool:
                    for future in [pool.submit(self._work) for _ in range(self._workers)]:
                        future.result()
        if self.fault:
            raise self.fault

    @property
    def is_complete(self) -> bool:
        """Whether as many trials have finished as were asked for."""
        return num_finished(patiently(self._trials)) >= self._n_trials

    def _work(self) -> None:
        try:
            while not self._may_not_begin():
                trial = self._next()
                if trial is not None:
                    self._finish(trial, self._run_or_give_back(trial))
                elif self.is_complete:
                    return
                else:
                    self._stopping.wait(POLL_S)
        except BaseException as error:  # the other workers end as well
            self.fault = self.fault or error
            self.stop()

    def _may_not_begin(self) -> bool:
        return self._stopping.is_set() or (self._deadline is not None and time.monotonic() > self._deadline)

    def _next(self) -> Trial | None:
        """Return the next trial to run, or None where there is none now."""
        with self._asking:
            beat(self.storage, self._running)  # after this machine has slept, before anybody is found dead
            self._bury()
            trials = patiently(self._trials)
            ours = counted(trials)
            may_retry = any(trial.state is TrialState.WAITING for trial in ours[: self._n_trials])
            if (len(ours) >= self._n_trials and not may_retry) or self._may_not_begin():
                return None
            trial = patiently(self.study.ask)
            self._running.add(trial._trial_id)
            patiently(lambda: self.storage.record_heartbeat(trial._trial_id))
            patiently(lambda: trial.set_user_attr(WORKER, this_process()))
            # Another sweeper may have asked at the same moment: the order of their numbers decides who was in time.
            before = [each for each in counted(patiently(self._trials)) if each.number < trial.number]
            if len(before) >= self._n_trials:
                self._give_back(trial)
                return None
            try:
                patiently(lambda: self._configure(trial))
            except BaseException:
                self._give_back(trial)
                raise
            return trial

    def _run_or_give_back(self, trial: Trial) -> Outcome:
        try:
            return self._run(trial)
        except BaseException:  # no trial can run
            with self._asking:
                self._give_back(trial)
            raise

    def _give_back(self, trial: Trial) -> None:
        """Have a trial that did not run count no more."""
        patiently(lambda: trial.set_user_attr(GIVEN_BACK, True))
        known = self._again(trial)
        if GRID_POINT in known.system_attrs:  # which is to be tried all the same
            patiently(lambda: self.storage.set_trial_system_attr(trial._trial_id, GRID_POINT, -1))
        self._tell(known, Outcome("failed"))
        self._running.discard(trial._trial_id)

    def _finish(self, trial: Trial, outcome: Outcome) -> None:
        with self._asking:
            known = self._again(trial)
            outcome = Outcome.of(known) or outcome
            if self._tell(known, outcome):
                self._num_finished += 1
                self._num_failed += outcome.state in ("failed", "died")
            self._running.discard(trial._trial_id)
            if self._num_finished >= self._workers and self._num_failed > self._max_failure_rate * self._num_finished:
                self.has_given_up = True
                self.stop()
        self._on_finished(self._again(trial))

    def _bury(self) -> None:
        """Finish the trials whose process is gone: with what it stored before, else as dead."""
        others = [
            trial
            for trial in patiently(self._trials)
            if trial.state is TrialState.RUNNING and trial._trial_id not in self._running
        ]
        silent = patiently(lambda: self.storage._get_stale_trial_ids(self.study._study_id)) if others else []
        for trial in others:
            worker = trial.user_attrs.get(WORKER)
            if trial._trial_id in silent or (worker and is_gone(worker)):
                died = Outcome("died", (), "its process ended, and nobody was there to see why")
                known = self._again(trial)  # it may have stored its outcome since
                if self._tell(known, Outcome.of(known) or died):
                    self._on_finished(self._again(trial))
            elif worker is None and trial._trial_id not in self._nameless:
                # Its sweeper may have ended while it asked for it: what has no heart is never silent, so it gets one.
                self._nameless.add(trial._trial_id)
                patiently(partial(self.storage.record_heartbeat, trial._trial_id))

    def _again(self, trial: Trial | FrozenTrial) -> FrozenTrial:
        """Return the trial as the storage has it now."""
        return patiently(lambda: self.storage.get_trial(trial._trial_id))

    def _tell(self, trial: FrozenTrial, outcome: Outcome) -> bool:
        """Give a trial its final state; return False where another sweeper was first."""
        try:
            if outcome.state in ("failed", "died") and outcome.reason:
                patiently(lambda: self.storage.set_trial_user_attr(trial._trial_id, REASON, outcome.reason))
            if outcome.state == "complete":
                patiently(lambda: self.study.tell(trial.number, list(outcome.values)))
            else:
                state = TrialState.PRUNED if outcome.state == "pruned" else TrialState.FAIL
                patiently(lambda: self.study.tell(trial.number, state=state))
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return False
        except (RuntimeError, KeyError) as error:  # after the state is set, of a grid without a further point
            if "Study.stop" not in str(error) and GRID_POINT not in str(error):
                raise
        if outcome.state == "died":
            self._retry(trial)
        self.was_last = self.is_complete
        return True

    def _retry(self, trial: FrozenTrial) -> None:
        """Queue the trial again, as Optuna's own `RetryHeartbeatStaleTrialCallback` does."""
        was_on_purpose = self._stopping.is_set()
        deaths = trial.system_attrs.get(DEATHS, 0) + (not was_on_purpose)
        if deaths > self._max_retries or GIVEN_BACK in trial.user_attrs:
            return
        history = [*trial.system_attrs.get(RETRY_HISTORY, []), trial.number]
        kept = {key: value for key, value in trial.user_attrs.items() if key not in OF_ONE_ATTEMPT}
        attributes = {**trial.system_attrs, "failed_trial": history[0], RETRY_HISTORY: history, DEATHS: deaths}
        again = optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=kept,
            system_attrs=attributes,
        )
        patiently(lambda: self.study.add_trial(again))

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)
