"""The registered model that a server follows: which of its versions is asked for, and its package."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flatfix.errors import UserError
from flatfix.inference.package import Package
from flatfix.registry.packages import fetch_package, forget_unused
from flatfix.registry.state import STAGING
from flatfix.registry.versions import Version, aliases, list_versions, registered_name
from flatfix.tracking.connection import connect, in_one_line, probe, redact, sqlite_path, told_as_user_error

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NEWEST = "newest"


class RegistryUnreachableError(UserError):
    """Report a registry that does not answer, or not to this user."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Name a version to serve, and how it was found: by the alias of this name, or as the `newest`."""

    version: Version
    found_by: str


class Source:
    """Ask MLflow which version to serve, for one thread at a time."""

    def __init__(self, uri: str, name: str | None, alias: str, cache_dir: Path) -> None:
        """Remember where to ask; nothing is asked yet, and MLflow not imported.

        Args:
            uri: of MLflow.
            name: of the registered model; None for the only one.
            alias: that is followed.
            cache_dir: for packages that are fetched.
        """
        self.uri = uri
        self.name = name
        self.alias = alias
        self._cache_dir = cache_dir
        self._client: MlflowClient | None = None
        self._followed: str | None = None

    def find(self) -> Choice | None:
        """Return the version that the alias points at, or None when there is no such alias.

        Raises:
            RegistryUnreachableError: the registry does not answer.
            UserError: there is no such registered model, or the alias points at what Flatfix did not register.
        """
        return self._ask(lambda client, name: self._named(client, name, self.alias))

    def find_any(self) -> Choice | None:
        """Return the version that the alias points at, without it that in staging, or else the newest.

        Raises:
            RegistryUnreachableError: the registry does not answer.
            UserError: as `find`.
        """
        return self._ask(self._any)

    def fetch(self, choice: Choice) -> Package:
        """Return the package of a version; every file of it has been checked.

        Raises:
            DamagedPackageError: when files are missing or changed where MLflow keeps them.
            UserError: when MLflow's artifacts cannot be read, or another Flatfix made the package.
            OSError: when there is no room for it, or no permission.
        """
        return fetch_package(self._connected(), choice.version, self._cache_dir)

    def forget_unused(self) -> None:
        """Remove packages from the cache that nobody has used lately."""
        forget_unused(self._cache_dir)

    def _ask(self, question: Callable[[MlflowClient, str], Choice | None]) -> Choice | None:
        """Put a question to a registry that answers, about the registered model that is followed."""
        try:
            with told_as_user_error(self.uri):
                if self.uri.startswith("sqlite:"):
                    self._refuse_missing(sqlite_path(self.uri))
                client = self._connected()
                if self.uri.startswith(("http:", "https:")):
                    probe(self.uri)  # MLflow itself waits a minute for a server that hangs
                try:
                    # Once found, the only one stays the one, whatever else is registered later.
                    self._followed = self._followed or registered_name(client, self.name)
                    return question(client, self._followed)
                except UserError as error:
                    refusal = error  # said by a registry that does answer
        except UserError as error:
            self._followed = None
            raise RegistryUnreachableError(str(error)) from error
        except Exception as error:  # MLflow raises whatever it likes for answers that are none of its own
            self._followed = None
            said = f"what answers there is not MLflow ({type(error).__name__}: {in_one_line(error)})"
            raise RegistryUnreachableError(f"tracking.uri={redact(self.uri)}: {said}. Choose another.") from error
        raise refusal

    def _connected(self) -> MlflowClient:
        if self._client is None:
            # A pool would go on reading a database file that has been replaced, as when a backup is restored.
            os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
            self._client = connect(self.uri)
        return self._client

    def _refuse_missing(self, database: Path) -> None:
        """Raise when there is no database: MLflow would make one."""
        if not database.is_file():
            raise UserError(
                f"tracking.uri={redact(self.uri)}: {database} does not exist. Train a model that qualifies and "
                f"promote it (train.py, promote.py), or name the database that holds it."
            )

    def _any(self, client: MlflowClient, name: str) -> Choice | None:
        for alias in dict.fromkeys((self.alias, STAGING)):
            if choice := self._named(client, name, alias):
                return choice
        versions = list_versions(client, name)
        return Choice(versions[-1], NEWEST) if versions else None

    def _named(self, client: MlflowClient, name: str, alias: str) -> Choice | None:
        number = aliases(client, name).get(alias)
        if number is None:
            return None
        for version in list_versions(client, name):
            if version.number == number:
                return Choice(version, alias)
        raise UserError(
            f"alias={alias}: it points at version {number} of {name}, which Flatfix did not register. "
            f"Point it at one that it did: promote.py"
        )
