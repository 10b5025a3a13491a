"""The multirun without a search: every combination of the values on the command line, and what the seeds differ by."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from flatfix.config.exit_codes import Ending, ExitCode
from flatfix.console import complain, say, table
from flatfix.evaluation.metrics import OBJECTIVES
from flatfix.sweeps import commands, seeds
from flatfix.sweeps.composition import composed
from flatfix.sweeps.findings import FOLDER
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
from flatfix.sweeps.parent import Parent
from flatfix.sweeps.remote import Died
from flatfix.sweeps.signals import stopping
from flatfix.tracking.run import Status
from flatfix.training.result import RunResult


class PlainSweep(BasicSweeper):
    """Hydra's own sweeper, under one run in MLflow; a job that fails ends no other.

    Args:
        max_batch_size: jobs that are composed at once, None for all.
        params: what to go through beside what the command line says.
    """

    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives a sweeper."""
        check_workers(config.sweep.workers)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        assert self.launcher is not None
        check_launcher(self.launcher, config.sweep.workers)
        self._jobs = self.launcher = Jobs(self.launcher, config.sweep.workers)

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs, compare them, and register the best.

        Raises:
            UserError: for a multirun that cannot begin.
            SystemExit: with the largest exit code of the jobs, unless it is 0.
        """
        refuse_ranks()
        name = self.config.sweep.name = str(self.config.sweep.name)  # a time, which would not be the same again
        check_name(name)
        self._check(arguments)
        facts = {"sweep.name": name, "sweep.arguments": " ".join(map(commands.without_password, arguments))}
        parent = begin_parent(self.config, name, None, facts)
        try:
            with stopping(self._let_end, self._jobs.kill):
                super().sweep([*arguments, f"sweep.name='{name}'", f"sweep.parent_run_id='{parent.run.run_id}'"])
        except BaseException as error:
            parent.end("FAILED", reason=f"{type(error).__name__}: {error}")
            raise
        self._conclude(parent)

    def _check(self, arguments: list[str]) -> None:
        """Compose and check the config of every job before anything begins."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        (jobs,) = self.split_arguments(parser.parse_overrides([*self._parse_config(), *arguments]), None)
        for overrides in jobs:
            composed(self.hydra_context, self.config, overrides)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: `_check` was here before."""

    def _conclude(self, parent: Parent) -> None:
        """Compare the jobs that finished, register the best of them, and leave with the exit code."""
        objective = self.config.sweep.objectives[0]
        sign = 1 if OBJECTIVES[objective] == "min" else -1
        finished = [(words, each.result) for words, each in self._jobs.endings if _has_finished(each.result)]
        folder = folder_of(self.config) / FOLDER
        if finished:
            folder.mkdir(exist_ok=True)
            rows = seeds.combinations(finished)
            seeds.write_csv(rows, folder / "combinations.csv")
            metric = self.config.monitor
            cells = [
                [row.overrides, f"{row.num_runs}", f"{row.validation[metric]}", f"{row.test[metric]}"] for row in rows
            ]
            table(["combination", "runs", f"val/{metric}", f"test/{metric}"], cells)
        words = seeds.differences([overrides for overrides, _ in self._jobs.endings])
        for own, (_, ending) in zip(words, self._jobs.endings, strict=True):
            if ending.reason:
                complain(f"failed: {' '.join(own)}: {ending.reason}")
        parent.settle_all({result.run_id: None for _, result in finished})
        code = max((ending.code for _, ending in self._jobs.endings), default=ExitCode.INTERRUPTED)
        status: Status = "KILLED" if code is ExitCode.INTERRUPTED else "FAILED" if code else "FINISHED"
        if unsent := parent.end(status, folder if finished else None):
            say(unsent)
        values = {result.run_id: sign * result.objectives[objective] for _, result in finished}
        register(self.config, sorted(values, key=lambda run_id: (math.isnan(values[run_id]), values[run_id])))
        if code:
            sys.exit(code)

    def _let_end(self) -> None:
        self._jobs.stop()
        say("no further job begins; those that run come to their end (Ctrl-C again to end them now)")


class Jobs(Launcher):
    """Another launcher, which is given one job for each worker at a time, and remembers how each ended.

    Args:
        launcher: runs one job, and is called by as many threads as there are workers.
        workers: jobs at a time; with one, jobs run in the thread of the caller.
    """

    def __init__(self, launcher: Launcher, workers: int) -> None:
        self.endings: list[tuple[Sequence[str], Ending]] = []
        self._launcher = launcher
        self._workers = workers
        self._stopping = threading.Event()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Do nothing: the launcher that runs the jobs has been set up."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs; return nothing, since Hydra would raise what a job raised."""
        numbered = range(initial_job_idx, initial_job_idx + len(job_overrides))
        if self._workers == 1:
            endings = list(map(self._run, job_overrides, numbered))
        else:
            with ThreadPoolExecutor(self._workers, thread_name_prefix="worker") as pool:
                endings = list(pool.map(self._run, job_overrides, numbered))
        self.endings += zip(job_overrides, endings, strict=True)
        return []

    def stop(self) -> None:
        """Begin no further job."""
        self._stopping.set()

    def kill(self) -> None:
        """End the jobs that run, where the launcher can."""
        self.stop()
        if hasattr(self._launcher, "stop"):
            self._launcher.stop()

    def _run(self, overrides: Sequence[str], number: int) -> Ending:
        if self._stopping.is_set():
            return Ending(ExitCode.INTERRUPTED)
        try:
            return run_job(self._launcher, overrides, number)
        except KeyboardInterrupt:  # from a launcher that runs jobs in this process
            self.stop()
            return Ending(ExitCode.INTERRUPTED)
        except Died as error:
            return Ending(ExitCode.INTERRUPTED if self._stopping.is_set() else ExitCode.ERROR, reason=str(error))


def _has_finished(result: object) -> bool:
    return isinstance(result, RunResult) and bool(result.objectives)
