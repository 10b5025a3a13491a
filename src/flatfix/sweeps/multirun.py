"""What every multirun does beside running its jobs: its run in MLflow, and the registration of the best."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from flatfix.config.exit_codes import Ending, ExitCode
from flatfix.config.options import SWEEP
from flatfix.config.schema import Option
from flatfix.console import complain, say
from flatfix.errors import UserError
from flatfix.sweeps.parent import Parent
from flatfix.sweeps.remote import Died

RANKS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # of torchrun, srun and mpirun


def refuse_ranks() -> None:
    """Refuse to begin a multirun in each of several processes, as torchrun starts them.

    Raises:
        UserError: naming the alternative.
    """
    for variable in RANKS:
        number = os.environ.get(variable, "1")
        if number.isdigit() and int(number) > 1:
            raise UserError(
                f"{variable}={number}: a multirun is begun by one process, and each of these would begin it again. "
                "Start train.py -m without torchrun or srun: with sweep.workers=N it keeps N jobs running, each on a "
                "GPU of its own."
            )


def check_name(name: str) -> None:
    """Refuse what is no name for a multirun and its folder.

    Raises:
        UserError: saying what is.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"sweep.name={name}: not a name for a sweep. Use letters, digits and . _ -")


def check_workers(workers: Any) -> None:
    """Refuse what is no number of workers, before a launcher divides the machine by it.

    Raises:
        UserError: naming sweep.workers.
    """
    option = SWEEP["sweep.workers"]
    assert isinstance(option, Option)
    if fault := option.fault(workers):
        raise UserError(f"sweep.workers: {fault}")


def check_launcher(launcher: Launcher, workers: int) -> None:
    """Refuse several jobs at a time with a launcher that is not made for being called by several threads.

    Raises:
        UserError: naming those that are.
    """
    if workers > 1 and not hasattr(launcher, "stop"):
        raise UserError(
            f"sweep.workers={workers}: {type(launcher).__name__} runs one job at a time for a multirun of Flatfix. "
            "Choose hydra/launcher=processes (the default), ray or submitit, or sweep.workers=1."
        )


def run_job(launcher: Launcher, overrides: Sequence[str], number: int) -> Ending:
    """Have a launcher run one job, and return how it ended.

    Raises:
        Died: the job ended without a word.
        UserError: the launcher cannot run any job.
    """
    try:
        (returned,) = launcher.launch([overrides], initial_job_idx=number)
    except UserError:
        raise
    except Exception as error:  # its config does not compose, or whatever else a launcher of others raises
        return Ending(ExitCode.ERROR, reason=f"{type(error).__name__}: {error}")
    answer = returned._return_value  # `return_value` would raise a failure, and print the overrides first
    if isinstance(answer, Ending):
        return answer
    if isinstance(answer, Died):
        raise answer
    return Ending(ExitCode.ERROR, reason=f"{type(answer).__name__}: {answer}")


def folder_of(config: DictConfig) -> Path:
    """Return the folder of the multirun, which is there from now on."""
    folder = Path(config.hydra.sweep.dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def begin_parent(config: DictConfig, name: str, run_id: str | None, params: Mapping[str, Any]) -> Parent:
    """Begin the run of the multirun in MLflow, or go on with `run_id`."""
    tracking = config.tracking
    folder = folder_of(config) / "multirun"
    return Parent.begin(tracking.uri, tracking.experiment, name=name, run_id=run_id, folder=folder, params=params)


def register(config: DictConfig, run_ids: Sequence[str]) -> None:
    """Make a candidate of the best of some runs, given the best first, where `sweep.register=best` asks for it."""
    if not config.registry.register or config.sweep.register != "best" or not run_ids:
        return
    from flatfix.registry.sweep import register_best
    from flatfix.training.packaging import package_run

    try:
        make_package = partial(package_run, config.tracking.uri)
        registrations = register_best(config.tracking.uri, run_ids, config.registry.name, make_package)
    except UserError as error:  # the multirun is done and kept: only its registration waits
        complain(f"the best run is not registered: {error}")
        return
    for registration in registrations:
        say(registration.describe())
