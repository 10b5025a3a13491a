"""What every multirun does beside running its jobs: its run in MLflow, and the registration of the best."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flatfix.console import complain, say
from flatfix.errors import UserError
from flatfix.sweeps.parent import Parent

RANKS = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


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
