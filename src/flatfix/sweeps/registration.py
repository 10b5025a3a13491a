"""At the end of a multirun, make a candidate of its best run."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from flatfix.console import complain, say
from flatfix.errors import UserError


class RegisterBest(Callback):
    """Register the best run of a multirun, where `sweep.register=best` asks for it.

    Hydra calls it on the machine that began the multirun, whatever launched the jobs. A run registers itself where all
    are to be registered, and where it is no part of a multirun.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Look in MLflow for the runs of this multirun, and register the best one."""
        if not config.registry.register or config.sweep.register != "best":
            return
        from flatfix.registry.sweep import register_best  # the command line need not wait for MLflow

        try:
            registrations = register_best(
                config.tracking.uri,
                config.tracking.experiment,
                sweep=config.sweep.id,
                metric=config.monitor,
                name=config.registry.name,
            )
        except UserError as error:  # Hydra makes a warning of what is raised here
            complain(f"the best run of {config.sweep.id} is not registered: {error}")
            return
        for registration in registrations:
            version = registration.version
            which = f": run {version.run_id}, the best by validation {config.monitor}" if version else ""
            say(f"{registration.describe()}{which}")
