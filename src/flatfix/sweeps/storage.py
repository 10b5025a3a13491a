"""The database of the studies."""

from __future__ import annotations

import random
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from flatfix.errors import UserError
from flatfix.tracking.connection import in_one_line, redact

T = TypeVar("T")

MISSED_BEATS = 4  # signs of life of a trial that fail to come before it counts as dead
SQLITE_PATIENCE_S = 60  # for the other processes that write
PATIENCE_S = 60  # for a database that is away


def open_storage(url: str, heartbeat_s: int) -> RDBStorage:
    """Open the database, which is made when it is a file that is missing.

    Args:
        url: as SQLAlchemy writes it, such as `sqlite:///sweeps.db` or `postgresql+psycopg2://user@host/sweeps`.
        heartbeat_s: seconds between two signs of life of a trial.

    Raises:
        UserError: naming sweep.storage: the address is none, its driver is missing, or the database does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", "Heartbeat of storage is supposed", category=UserWarning)  # we beat it ourselves
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    option = f"sweep.storage={redact(url)}"
    try:
        parsed = make_url(url)
        options: dict[str, Any] = {"pool_pre_ping": True}
        if parsed.get_backend_name() == "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise UserError(f"{option}: no database file. Write sqlite:////<absolute path>.")
            Path(parsed.database).absolute().parent.mkdir(parents=True, exist_ok=True)
            options = {"connect_args": {"timeout": SQLITE_PATIENCE_S}}
        return _opened(url, options, heartbeat_s)
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(
            f"{option}: not the address of a database ({in_one_line(error)}). "
            "Write sqlite:////<absolute path> or postgresql+psycopg2://user@host/database."
        ) from error
    except ImportError as error:
        raise UserError(f"{option}: {error}. Install the driver, such as: pip install psycopg2-binary") from error
    except (DatabaseError, StorageInternalError, RuntimeError, OSError) as error:
        raise UserError(f"{option}: the database cannot be used: {in_one_line(error)}") from error


def patiently(call: Callable[[], T]) -> T:
    """Return what a call to the database returns; make it again, for a minute, while the database is away or locked."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except (DatabaseError, StorageInternalError):
            if time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.1, 1))


def _opened(url: str, options: dict[str, Any], heartbeat_s: int) -> RDBStorage:
    """Open, and again where another process made the tables at the same moment."""
    for attempt in range(4):
        try:
            return RDBStorage(
                url,
                engine_kwargs=options,
                heartbeat_interval=heartbeat_s,
                grace_period=MISSED_BEATS * heartbeat_s,
            )
        except (DatabaseError, StorageInternalError):
            if attempt == 3:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError


@contextmanager
def beating(storage: RDBStorage, heartbeat_s: int, trial_ids: Callable[[], Iterable[int]]) -> Iterator[None]:
    """Give a sign of life of trials every so many seconds, from a thread.

    Args:
        storage: that of the trials.
        heartbeat_s: seconds between two signs.
        trial_ids: returns whose signs are due.
    """
    is_over = threading.Event()

    def keep_beating() -> None:
        while not is_over.wait(heartbeat_s):
            beat(storage, trial_ids())

    thread = threading.Thread(target=keep_beating, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def beat(storage: RDBStorage, trial_ids: Iterable[int]) -> None:
    """Give a sign of life of trials; a database that is away misses it."""
    with suppress(DatabaseError, StorageInternalError):
        for trial_id in trial_ids:
            storage.record_heartbeat(trial_id)
