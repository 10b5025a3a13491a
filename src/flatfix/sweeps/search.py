"""The sweeper: hydra-optuna-sweeper's options and search spaces over a schedule that no bad trial stops."""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, Literal, cast

import optuna
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_params_from_overrides
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from flatfix.config.exit_codes import ExitCode
from flatfix.config.instantiate import build
from flatfix.console import complain, say
from flatfix.errors import UserError
from flatfix.sweeps import commands
from flatfix.sweeps.composition import composed, corners
from flatfix.sweeps.findings import best_first, write_findings
from flatfix.sweeps.multirun import (
    begin_parent,
    check_launcher,
    check_name,
    check_workers,
    folder_of,
    refuse_ranks,
    register,
    run_job,
)
from flatfix.sweeps.remote import Died
from flatfix.sweeps.schedule import Schedule
from flatfix.sweeps.signals import stopping
from flatfix.sweeps.storage import open_storage, patiently
from flatfix.sweeps.studies import in_words, open_study
from flatfix.sweeps.summary import figure, settings, summarise
from flatfix.sweeps.trials import INTERRUPTED, OVERRIDES, REASON, RUN_ID, Outcome, counted, num_finished
from flatfix.tracking.connection import redact

SAMPLERS = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
# User attributes of a study.
PARENT = "parent_run_id"
OBJECTIVES = "objectives"
FIXED = "fixed"
OF_JOBS = ("sweep.", "tracking.uri")  # options that a trial does not keep, or not with their passwords
PARENT_PATIENCE_S = 20.0  # for the sweeper that has just begun a study to begin its MLflow run


class Search(OptunaSweeperImpl):
    """Search with Optuna: no trial waits for another, and none that fails ends the others.

    Args:
        sampler: node of the sampler.
        custom_search_space: dotted path of a function that gives a trial further parameters.
        options: the others of hydra-optuna-sweeper.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, sampler: Any, custom_search_space: str | None, **options: Any) -> None:
        super().__init__(
            sampler=instantiate(sampler, _execution_whitelist_=SAMPLERS), custom_search_space=None, **options
        )
        if custom_search_space:
            self.custom_search_space_extender = instantiate(
                {"_target_": custom_search_space, "_partial_": True}, _execution_whitelist_=(custom_search_space,)
            )
        self._is_interrupted = False
        self._is_killing = threading.Event()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives a sweeper."""
        check_workers(self.n_jobs)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until as many as were asked for have finished, then say what they found.

        Raises:
            UserError: for what makes no sweep.
            SystemExit: with the exit code.
        """
        refuse_ranks()
        self._name = self.config.sweep.name = str(self.study_name or self.config.sweep.name)  # a time moves on
        self._process_searchspace_config()
        words = [*self._parse_sweeper_params_config(), *arguments]
        try:
            space, self._fixed, self._deletions = create_params_from_overrides(words)
        except (AssertionError, ValueError) as error:
            raise UserError(f"hydra/sweeper=optuna: no space to search: {error}") from error
        self._space = {name: distribution for name, distribution in space.items() if name not in self._fixed}
        self._check()
        self._prepare_grid()
        self._open()
        self._schedule = Schedule(
            self._study,
            self._storage,
            configure=self._configure,
            run=self._run,
            n_trials=self.n_trials,
            workers=self.n_jobs,
            heartbeat_s=self.config.sweep.heartbeat_s,
            max_retries=self.config.sweep.max_retries,
            timeout_s=self.config.sweep.timeout_s,
            max_failure_rate=self.max_failure_rate,
            on_finished=self._finished,
        )
        try:
            with stopping(self._let_end, self._kill):
                self._schedule.work()
        except BaseException as error:
            self._parent.end("FAILED", reason=f"{type(error).__name__}: {error}")
            raise
        self._conclude()

    def _check(self) -> None:
        """Refuse what makes no sweep, and try the ends of every interval and every choice, before anything begins."""
        if not self._space and not self.custom_search_space_extender:
            raise UserError(
                "hydra/sweeper=optuna: there is nothing to search. Name a space, such as "
                "'optimizer.lr=tag(log,interval(1e-4,1e-1))' or 'model=choice(resnet18,cnn)', or one of conf/sweep: "
                "sweep=tpe."
            )
        check_name(self._name)
        check_launcher(self.launcher, self.n_jobs)
        for point in corners(self._space):
            words = [f"{name}={value}" for name, value in {**point, **self._fixed}.items()]
            composed(self.hydra_context, self.config, [*words, *self._deletions])

    def _prepare_grid(self) -> None:
        """Give a grid sampler, which comes without its grid, the values of the space."""
        if isinstance(self.sampler, functools.partial) and self.sampler.func is optuna.samplers.GridSampler:
            grid = {name: self._values(name, distribution) for name, distribution in self._space.items()}
            self.sampler = self.sampler(grid)
            self.n_trials = min(self.n_trials, math.prod(map(len, grid.values())))

    def _values(self, name: str, distribution: BaseDistribution) -> list[Any]:
        try:
            return list(self._to_grid_sampler_choices(distribution))
        except ValueError as error:
            raise UserError(
                f"{name}: a grid needs values, not an interval. Write {name}=choice(…) or {name}=range(…)."
            ) from error

    def _open(self) -> None:
        """Open the study and the MLflow run of the sweep, new ones or those of a sweep to go on with."""
        self._storage = open_storage(self.storage or self.config.sweep.storage, self.config.sweep.heartbeat_s)
        self._study, is_new = open_study(
            self._name,
            self._storage,
            sampler=self.sampler,
            pruner=build({str(key): value for key, value in self.config.pruner.items()}, "pruner"),
            directions=cast("list[Literal['minimize', 'maximize']]", self._get_directions()),
            space=self._space,
        )
        self._compare_with_before(is_new=is_new)
        run_id = None if is_new else self._parent_run_id()
        self._parent = begin_parent(self.config, self._name, run_id, self._facts())
        self._study.set_user_attr(PARENT, self._parent.run.run_id)
        finished = self._num_finished()
        before = f", of which {finished} finished before" if finished else ""
        say(f"sweep {self._name}: {self.n_trials} trials{before}; {self.n_jobs} at a time")

    def _compare_with_before(self, *, is_new: bool) -> None:
        """Refuse to go on with a study that looks for something else, and say what is no longer as it began."""
        words = [f"{name}={value}" for name, value in self._fixed.items() if not name.startswith("sweep.")]
        now = {OBJECTIVES: list(self.config.sweep.objectives), FIXED: [*map(commands.without_password, words)]}
        if is_new:
            for key, value in now.items():
                self._study.set_user_attr(key, value)
            return
        before = {**now, **self._study.user_attrs}
        if before[OBJECTIVES] != now[OBJECTIVES]:
            raise UserError(
                f"sweep.objectives={now[OBJECTIVES]}: the study {self._name} looks for {before[OBJECTIVES]}. "
                "Take another sweep.name, or the objectives it began with."
            )
        if changed := sorted({*before[FIXED]} ^ {*now[FIXED]}):
            say(f"not as the study began, so that its trials may not compare: {', '.join(changed)}")

    def _parent_run_id(self) -> str | None:
        """Return the MLflow run of a study that was there; the sweeper that has just begun it may not have it yet."""
        deadline = time.monotonic() + PARENT_PATIENCE_S
        while PARENT not in self._study.user_attrs and time.monotonic() < deadline:
            time.sleep(0.2)
        return self._study.user_attrs.get(PARENT)

    def _facts(self) -> dict[str, Any]:
        return {
            "sweep.name": self._name,
            "sweep.objectives": ", ".join(self.config.sweep.objectives),
            "sweep.n_trials": self.n_trials,
            "sweep.workers": self.n_jobs,
            "sweep.storage": redact(self.storage or self.config.sweep.storage),
            "sampler": type(self.sampler).__name__,
            "pruner": self.config.pruner._target_.rpartition(".")[2],
            **{f"space.{name.lstrip('+')}": in_words(distribution) for name, distribution in self._space.items()},
            "command": commands.continuing(self._name),
        }

    def _configure(self, trial: Trial) -> None:
        fixed = {
            key: commands.without_password(f"{key}={value}").partition("=")[2] for key, value in self._fixed.items()
        }
        ((*words,),) = self._configure_trials([trial], self._space, fixed, self._deletions)
        trial.set_user_attr(OVERRIDES, [word for word in words if not word.startswith("sweep.")])

    def _run(self, trial: Trial) -> Outcome:
        """Run the job of a trial; what it stored itself counts more than what is returned here."""
        own = {"sweep.name": f"'{self._name}'", "sweep.parent_run_id": f"'{self._parent.run.run_id}'"}
        others = {key: value for key, value in self._fixed.items() if key.lstrip("+").startswith(OF_JOBS)}
        of_the_sweep = [f"{name}={value}" for name, value in {**others, **own, "sweep.trial": trial.number}.items()]
        words = [*trial.user_attrs[OVERRIDES], *of_the_sweep]
        say(f"trial {trial.number}: {settings(trial.params)}")
        try:
            ending = run_job(self.launcher, words, trial.number)
        except KeyboardInterrupt:  # from a launcher that runs jobs in this process
            self._let_end()
            return Outcome("died", reason=INTERRUPTED)
        except Died as error:
            return Outcome("died", reason=INTERRUPTED if self._is_killing.is_set() else str(error))
        return Outcome("failed", reason=ending.reason or "it ended, and the study was never told how")

    def _finished(self, trial: FrozenTrial) -> None:
        """Tell the terminal and MLflow how a trial ended."""
        number, objectives = trial.number, self.config.sweep.objectives
        reason = trial.user_attrs.get(REASON, "")
        if trial.state is TrialState.COMPLETE:
            values = dict(zip(objectives, trial.values, strict=True))
            self._parent.run.log_metrics(values, number)
            said = "complete, " + ", ".join(f"{name} {figure(value)}" for name, value in values.items())
        elif trial.state is TrialState.PRUNED:
            said = f"pruned after epoch {trial.last_step}"
        else:
            said = f"failed: {reason.splitlines()[0] if reason else 'no reason is known'}"
        leader = ""
        if len(objectives) == 1 and (leaders := patiently(lambda: best_first(self._study))):
            leader = f"; best {figure(leaders[0].values[0])} (trial {leaders[0].number})"
        say(f"trial {number} {said}{leader}  [{self._num_finished()}/{self.n_trials}]")
        self._parent.settle(_ended([trial]))

    def _conclude(self) -> None:
        """Write and say what the sweep found, register the best run, and leave with the exit code."""
        trials = self._study.get_trials(deepcopy=False)
        if not any(trial.state is TrialState.RUNNING for trial in trials):
            self._parent.settle_all(_ended(trials))
        is_complete = self._schedule.is_complete
        is_interrupted = self._is_interrupted and not is_complete
        has_failed = bool(counted(trials)) and all(trial.state is TrialState.FAIL for trial in counted(trials))
        summary = summarise(
            self._study,
            self.config.sweep.objectives,
            self.config.trainer.max_epochs,
            lambda trial: commands.training(
                trial.user_attrs.get(OVERRIDES) or [f"{key}={value}" for key, value in trial.params.items()]
            ),
        )
        folder = write_findings(self._study, self.config.sweep.objectives, summary, folder_of(self.config))
        unsent = self._parent.end("FAILED" if has_failed else "FINISHED" if is_complete else "KILLED", folder)
        for line in [*([unsent] if unsent else []), *summary.lines()]:
            say(line)
        if self._schedule.was_last or not (is_interrupted or is_complete):  # one of several sweepers registers
            register(self.config, [row.run_id for row in best_first(self._study)])
        if not is_complete:
            say(f"to go on: {commands.continuing(self._name)}")
        if is_interrupted:
            sys.exit(ExitCode.INTERRUPTED)
        if has_failed or self._schedule.has_given_up:
            number, reason = summary.first_failure or ("", "no reason is known")
            complain(f"{'every trial' if has_failed else 'too many trials'} failed; the first, {number}: {reason}")
            sys.exit(ExitCode.NO)
        sys.exit(ExitCode.DONE)  # also where a trial that failed ran in this process

    def _let_end(self) -> None:
        self._is_interrupted = True
        self._schedule.stop()
        say("no further trial begins; those that run come to their end (Ctrl-C again to end them now)")

    def _kill(self) -> None:
        self._is_interrupted = True
        self._is_killing.set()
        self._schedule.stop()
        if hasattr(self.launcher, "stop"):
            self.launcher.stop()

    def _num_finished(self) -> int:
        return num_finished(patiently(lambda: self._study.get_trials(deepcopy=False)))


def _ended(trials: Iterable[FrozenTrial]) -> dict[str, str | None]:
    """Return the MLflow run of each trial that has finished, and why it failed, None where it did not."""
    return {
        trial.user_attrs[RUN_ID]: trial.user_attrs.get(REASON, "it failed") if trial.state is TrialState.FAIL else None
        for trial in trials
        if trial.state.is_finished() and RUN_ID in trial.user_attrs
    }
