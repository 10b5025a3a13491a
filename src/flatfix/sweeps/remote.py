"""A job of a multirun in another process: composed and packed here, run there, and what comes back."""

from __future__ import annotations

import copy
import io
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from flatfix.console import complain

CONSOLE = "console.log"

COMPOSING = threading.Lock()
"""Held while a config is composed: Hydra and OmegaConf keep state of the whole process."""


class Died(Exception):
    """Say how a job ended that could not say so itself."""


@dataclass(frozen=True)
class _Job:
    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig
    singletons: Any
    has_console: bool


def pack(
    hydra_context: HydraContext,
    task_function: TaskFunction,
    config: DictConfig,
    *,
    number: int,
    overrides: Sequence[str],
    has_console: bool,
) -> tuple[DictConfig, bytes]:
    """Compose the config of a job, and return it with what another process needs to run the job.

    Args:
        hydra_context: of the multirun, as a launcher is given it.
        task_function: of the multirun.
        config: of the multirun.
        number: of the job.
        overrides: what the command line of the job says.
        has_console: what the job has to say goes to `console.log` in its folder rather than to the terminal.
    """
    with COMPOSING:
        setup_globals()
        job_config = hydra_context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(job_config):
            job_config.hydra.job.id = f"{job_config.hydra.job.name}_{number}"
            job_config.hydra.job.num = number
        job = _Job(hydra_context, task_function, job_config, Singleton.get_state(), has_console)
        return job_config, cloudpickle.dumps(job)


def run_packed(payload: bytes) -> bytes:
    """Run a job in the process made for it, and return how it ended, packed."""
    error: BaseException
    try:
        return cast(bytes, cloudpickle.dumps(_run(cloudpickle.loads(payload))))
    except KeyboardInterrupt:
        error = Died("interrupted")
    except SystemExit as exit_:
        error = Died(f"exit code {exit_.code}")
    except BaseException as other:  # not the task's, which `run_job` returns
        complain(traceback.format_exc())
        error = other
    return cast(bytes, cloudpickle.dumps(failed(error)))


def unpack(answer: bytes, config: DictConfig) -> JobReturn:
    """Return how a job with this config ended."""
    result: JobReturn = cloudpickle.loads(answer)
    return result if result.cfg is not None else _described(result, config)


def failed(error: BaseException, config: DictConfig | None = None) -> JobReturn:
    """Return what Hydra is told of a job that failed."""
    result = JobReturn(status=JobStatus.FAILED)
    result.return_value = error
    return result if config is None else _described(result, config)


def _described(result: JobReturn, config: DictConfig) -> JobReturn:
    """Add what `run_job` would have said of the job."""
    result.overrides = list(config.hydra.overrides.task)
    result.task_name = config.hydra.job.name
    result.hydra_cfg = copy.deepcopy(config)
    result.cfg = copy.deepcopy(config)
    with open_dict(result.cfg):
        del result.cfg["hydra"]
    return result


def _run(job: _Job) -> JobReturn:
    setup_globals()
    Singleton.set_state(job.singletons)
    HydraConfig.instance().set_config(job.config)
    if job.has_console:
        _write_to(Path(job.config.hydra.sweep.dir, str(job.config.hydra.sweep.subdir), CONSOLE))
    return run_job(
        hydra_context=job.hydra_context,
        task_function=job.task_function,
        config=job.config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _write_to(path: Path) -> None:
    """Have everything go to the file that would go to the terminal, what libraries in C write too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.dup2(file.fileno(), number)
            cast(io.TextIOWrapper, stream).reconfigure(line_buffering=True)
