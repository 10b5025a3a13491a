"""Run the jobs of a multirun as jobs of Slurm."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, filter_overrides
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import DictConfig

from flatfix.errors import UserError
from flatfix.sweeps.remote import COMPOSING, Died, failed

# submitit itself is imported where it is used: every command line imports this module.
if TYPE_CHECKING:
    import submitit

log = logging.getLogger(__name__)

OF_EXECUTOR = ("max_num_timeout", "python")  # what it is made with; the rest describes its jobs
# What Slurm and submitit send before the time is up; Lightning and submitit would have Slurm run the job again.
BEFORE_TIMEOUT = (signal.SIGUSR1, signal.SIGUSR2)


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Submit each job to Slurm by itself, and wait for its end.

    The folder of the multirun, the code and the data have to be on disks that every node sees. A job whose time is up,
    or that Slurm ends otherwise, ends as by SIGTERM, and is that job's failure and nobody else's.

    Args:
        params: what hydra-submitit-launcher takes.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what every job needs, and look whether Slurm is here.

        Raises:
            UserError: it is not, or an option is wrong.
        """
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._is_stopping = False
        self._running: set[submitit.Job[JobReturn]] = set()
        try:
            self.executor = self._executor()
        except (AssertionError, NameError, RuntimeError, ValueError) as error:
            raise UserError(f"hydra/launcher=submitit: {error}. See hydra.launcher.") from error

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs and return how they ended, in their order; several threads may call this at a time.

        Args:
            job_overrides: what the command line of each job says.
            initial_job_idx: number of the first.

        Raises:
            UserError: Slurm does not take them.
        """
        jobs = [self._submit(initial_job_idx + i, overrides) for i, overrides in enumerate(job_overrides)]
        return [self._result(*each) for each in zip(jobs, job_overrides, strict=True)]

    def stop(self) -> None:
        """Have the running jobs end soon, and no other begin; safe in a signal's handler."""
        self._is_stopping = True
        for job in [*self._running]:
            job.cancel(check=False)

    def __call__(self, sweep_overrides: list[str], *arguments: Any) -> JobReturn:
        """Run a job: what its process does, wherever Slurm began it."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for number in BEFORE_TIMEOUT:
            signal.signal(number, _as_sigterm)
        try:
            return super().__call__(sweep_overrides, *arguments)
        except KeyboardInterrupt:
            result = failed(Died("interrupted"))
            result.overrides = sweep_overrides
            return result

    def __getstate__(self) -> dict[str, Any]:
        """Return what a job needs: it starts none itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("executor", "_running")}

    def _executor(self) -> submitit.AutoExecutor:
        """Make what submits jobs, as the plugin's own `launch` does."""
        import submitit

        made = {f"slurm_{name}": self.params[name] for name in OF_EXECUTOR}
        executor = submitit.AutoExecutor(self.params["submitit_folder"], cluster="slurm", **made)
        common = BaseQueueConf.__dataclass_fields__
        of_jobs = {name: value for name, value in self.params.items() if name not in ("submitit_folder", *OF_EXECUTOR)}
        executor.update_parameters(
            **{name if name in common else f"slurm_{name}": value for name, value in of_jobs.items()}
        )
        return executor

    def _submit(self, number: int, overrides: Sequence[str]) -> submitit.Job[JobReturn]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        log.info("#%d : %s", number, " ".join(filter_overrides(overrides)))
        with COMPOSING:
            arguments = (list(overrides), "hydra.sweep.dir", number, f"{number}", Singleton.get_state())
            try:
                job = self.executor.submit(self, *arguments)
            except (FailedJobError, FailedSubmissionError) as error:
                raise UserError(f"hydra/launcher=submitit: sbatch refuses the job: {error}") from error
        self._running.add(job)
        if self._is_stopping:
            job.cancel(check=False)
        return job

    def _result(self, job: submitit.Job[JobReturn], overrides: Sequence[str]) -> JobReturn:
        from submitit.core.utils import UncompletedJobError

        try:
            return job.results()[0]
        except UncompletedJobError:
            reason = f"its job {job.job_id} of Slurm ended without a word ({job.state}), see {job.paths.stderr}"
            result = failed(Died(reason))
            result.overrides = overrides
            return result
        finally:
            self._running.discard(job)


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)
