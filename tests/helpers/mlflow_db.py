"""A migrated MLflow database for a test, without the seconds that MLflow takes to make one."""

from __future__ import annotations

import getpass
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from flatfix.tracking import preflight


def fresh_database(folder: Path) -> str:
    """Put an empty MLflow database into `folder` and return its tracking URI.

    The template is made once for each machine, user and version of MLflow; several processes may ask for it at once.
    """
    cache = Path(tempfile.gettempdir(), f"flatfix-mlflow-{metadata.version('mlflow')}-{getpass.getuser()}")
    template = cache / "mlflow.db"
    if not template.exists():
        preflight(f"sqlite:///{template}", "Default")
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{shutil.copy(template, folder / 'mlflow.db')}"
