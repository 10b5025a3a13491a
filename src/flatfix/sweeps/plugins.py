"""Hydra's plugins of this package, which `conf/hydra/` names; they cost a command line nothing until they are used."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from flatfix.sweeps.processes import ProcessLauncher


def register() -> None:
    """Make the plugins known to Hydra, which finds by itself only what lies in its own namespace package."""
    for plugin in (PlainSweeper, OptunaSweeper, ProcessLauncher):
        Plugins.instance().register(plugin)
    with suppress(ImportError):  # the extra `ray` is not installed
        from flatfix.sweeps.ray_launcher import RayLauncher

        Plugins.instance().register(RayLauncher)
    with suppress(ImportError):  # the extra `slurm` is not installed
        from flatfix.sweeps.slurm_launcher import SlurmLauncher

        Plugins.instance().register(SlurmLauncher)


class PlainSweeper(Sweeper):
    """Run every combination of the values on the command line: see `flatfix.sweeps.plain`."""

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None) -> None:
        from flatfix.sweeps.plain import PlainSweep

        self._sweep = PlainSweep(max_batch_size, dict(params or {}))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives a sweeper."""
        self._sweep.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the multirun."""
        return self._sweep.sweep(arguments)


class OptunaSweeper(Sweeper):
    """Look for the best with Optuna: see `flatfix.sweeps.search`. It takes every option of hydra-optuna-sweeper."""

    def __init__(self, **options: Any) -> None:
        from flatfix.sweeps.search import Search

        self._sweep = Search(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives a sweeper."""
        self._sweep.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep."""
        return self._sweep.sweep(arguments)
