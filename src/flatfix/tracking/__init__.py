"""MLflow runs: parameters, metrics, artifacts and provenance that survive an outage of the server.

`mlflow` is imported by the first function that needs it: importing this package is cheap.
"""

from __future__ import annotations

from flatfix.tracking.connection import preflight
from flatfix.tracking.provenance import Provenance
from flatfix.tracking.run import Run, Status

__all__ = ["Provenance", "Run", "Status", "preflight"]
