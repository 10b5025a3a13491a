"""Lightning's logger over a tracked run."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

from flatfix.tracking.run import Run


class RunLogger(Logger):
    """Send the metrics that modules and callbacks log to the tracked run, one row an epoch."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str:
        """The kind of logger."""
        return "mlflow"

    @property
    def version(self) -> str:
        """The id of the run."""
        return self._run.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log under the epoch, counted from 0, rather than under the step."""
        epoch = int(metrics.get("epoch", step or 0))
        self._run.log_metrics({key: float(value) for key, value in metrics.items() if key != "epoch"}, epoch)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `run.train` logs the parameters, since it alone knows them all."""
