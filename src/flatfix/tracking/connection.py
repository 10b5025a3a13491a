"""Where runs are kept: check `tracking.uri` and `tracking.experiment` before anything is trained, then connect.

A SQLite file is the default, an MLflow server the alternative. Any other address goes to MLflow as it stands.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from flatfix.console import say
from flatfix.errors import UserError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PROBE_TIMEOUT_S = 8

# MLflow retries a lost server 7 times and waits 120 s for each answer; the outbox does its own retrying and must hear
# of an outage soon. Only the environment reaches MLflow's HTTP client. What the user has set wins.
_MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one line a file, where there is no terminal
}


def preflight(uri: str, experiment: str) -> str:
    """Return the id of `experiment` at `uri`; create the experiment, and a SQLite file, where there is none.

    An experiment created in a SQLite file keeps its artifacts beside that file, under `mlartifacts/`.

    Raises:
        UserError: `uri` is of no use, its server does not answer (known within 10 s), or `experiment` lies in MLflow's
            trash.
    """
    scheme = uri.partition(":")[0] if ":" in uri else ""
    if scheme in ("", "file"):
        folder = Path(urlsplit(uri).path).absolute()
        raise UserError(
            f"tracking.uri={uri}: MLflow 3 keeps no runs in plain folders. Use a database file, "
            f"tracking.uri=sqlite:///{folder / 'mlflow.db'}, or a server, tracking.uri=http://<host>:5000."
        )
    artifact_location = None
    with told_as_user_error(uri):
        if scheme == "sqlite":
            database = sqlite_path(uri)
            _create_sqlite(uri, database)
            # MLflow would put them into ./mlruns of whatever folder the process runs in.
            artifact_location = (database.parent / "mlartifacts" / re.sub(r"[^\w-]+", "-", experiment)).as_uri()
        elif scheme in ("http", "https"):
            probe(uri)
        return _experiment_id(uri, experiment, artifact_location)


def connect(uri: str) -> MlflowClient:
    """Return a client of `uri` that hears of a lost server soon and prints nothing less than a warning.

    MLflow's global addresses, of runs and of registered models, are neither read nor set.
    """
    tame_mlflow()
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


@contextmanager
def told_as_user_error(uri: str) -> Iterator[None]:
    """Turn the errors that tell why MLflow at `uri` cannot be used into one that tells the user what to do."""
    tame_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        is_login = isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403)
        advice = (
            "Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            if is_login
            else "Start or repair it, or choose another tracking.uri."
        )
        raise UserError(
            f"tracking.uri={redact(uri)}: MLflow cannot be used there ({in_one_line(error)}). {advice}"
        ) from error


def redact(uri: str) -> str:
    """Return `uri` as it may be shown: without its password."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    login, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login.partition(':')[0]}:***@{host}"))


def in_one_line(error: BaseException) -> str:
    """Return in one line why a call to MLflow failed.

    Where the network or the disk is at fault it is the innermost `OSError` that tells; MLflow's own message buries that
    one under addresses, connection pools and retries.
    """
    message = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            message = f"{type(cause).__name__}: {cause}"
        cause = cause.__cause__ or cause.__context__
    return (message.strip().splitlines() or [type(error).__name__])[0][:300]


def tame_mlflow() -> None:
    """Import MLflow so that it hears of a lost server soon and prints nothing less than a warning."""
    for name, value in _MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401  (it sets the level of its loggers, back to INFO, when it is imported)

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.WARNING)


def sqlite_path(uri: str) -> Path:
    """Return the file of a SQLite database, absolute.

    Raises:
        UserError: `uri` names none.
    """
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    if not uri.startswith("sqlite:///") or path in ("", ":memory:"):
        raise UserError(
            f"tracking.uri={uri}: no database file. Write sqlite:///<relative path> or sqlite:////<absolute path>."
        )
    return Path(path).absolute()


def _create_sqlite(uri: str, database: Path) -> None:
    """Create MLflow's database unless `database` exists.

    MLflow migrates a new database for seconds, and one interrupted meanwhile can never be opened again: so it is made
    in a folder of its own and moved when it is whole. Of two processes at it the first one wins.
    """
    if database.exists():
        with database.open("rb") as file:
            if file.read(16) not in (b"SQLite format 3\0", b""):
                raise UserError(f"tracking.uri={uri}: {database} is not a SQLite database. Choose another file.")
        return

    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=".mlflow-") as folder:
        say(f"Creating {database} (once, takes some seconds)")
        whole = Path(folder, "mlflow.db")
        store = SqlAlchemyStore(f"sqlite:///{whole}", (database.parent / "mlartifacts").as_uri())
        store.engine.dispose()
        try:
            os.link(whole, database)
        except FileExistsError:
            return
        except OSError:  # this file system has no hard links
            whole.replace(database)


def probe(uri: str) -> None:
    """Raise unless an HTTP server answers at `uri`, asked through the proxies and with the login that MLflow uses."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    configured = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    is_ours = configured == _MLFLOW_DEFAULTS["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    answer = http_request(
        get_default_host_creds(uri),
        "/health",
        "GET",
        timeout=PROBE_TIMEOUT_S if is_ours else int(configured),
        raise_on_status=False,
    )
    if answer.status_code >= 500:
        raise ConnectionError(f"HTTP status {answer.status_code}")


def _experiment_id(uri: str, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location)
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise UserError(f"tracking.experiment={name}: {in_one_line(error)}") from error
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)  # another process was first
        assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"tracking.experiment={name}: it lies in MLflow's trash. Restore it with\n"
            f"  MLFLOW_TRACKING_URI={shlex.quote(redact(uri))} "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}\n"
            "or choose another tracking.experiment."
        )
    return str(experiment.experiment_id)
