"""A registered model as it stands, and its aliases and tags as they should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatfix.registry.journal import Journal, Move
from flatfix.registry.patience import patiently
from flatfix.registry.state import PRODUCTION, Difference, State, differences, fold
from flatfix.registry.versions import STAGE_TAG, Version, aliases, list_versions
from flatfix.tracking.connection import told_as_user_error

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_ROUNDS = 100


@dataclass(frozen=True)
class View:
    """Hold what there was of a registered model at one moment.

    Attributes:
        versions: all of them, oldest first.
        moves: all of them, oldest first.
        state: what the moves come to.
    """

    versions: tuple[Version, ...]
    moves: tuple[Move, ...]
    state: State

    def version(self, number: int) -> Version:
        """Return a version that the state names."""
        return next(version for version in self.versions if version.number == number)

    def in_stage(self, stage: str) -> list[Version]:
        """Return the versions in a stage, oldest first; the moves say which, not the tags."""
        return [version for version in self.versions if self.state.stage(version.number) == stage]

    @property
    def production(self) -> Version | None:
        """The version that is live."""
        number = self.state.production
        return None if number is None else self.version(number)

    @property
    def went_live(self) -> Move | None:
        """The move by which the live version went live."""
        if self.state.production is None:
            return None
        return next(move for move in reversed(self.moves) if move.to_stage == PRODUCTION)


@dataclass(frozen=True)
class Registry:
    """One registered model: its versions, its journal, and the aliases and tags that tell others what the journal says.

    The journal is the truth. Readers follow the aliases: `@production` is one row, so that it points at one version at
    every moment, and writing it is the moment at which a move takes place for them.
    """

    client: MlflowClient
    name: str
    journal: Journal

    @classmethod
    def open(cls, client: MlflowClient, name: str) -> Registry:
        """Return a registered model that Flatfix made.

        Raises:
            UserError: as `Journal.open` does.
        """
        return cls(client, name, Journal.open(client, name))

    def look(self) -> View:
        """Return what there is now, and write nothing.

        Raises:
            UserError: MLflow does not answer.
        """
        with told_as_user_error(self.client.tracking_uri):
            moves = tuple(self.journal.moves())
            versions = tuple(list_versions(self.client, self.name))  # later: it holds every version that moves name
        return View(versions, moves, fold(moves, {version.number for version in versions}))

    def settle(self) -> tuple[View, list[Difference]]:
        """Write what the journal says into aliases and tags; return what there is now, and what had to be written.

        What there is to write is left of a move that was interrupted, or somebody has changed it by hand. Whoever has
        written looks again: of several at once, none leaves behind what is no longer true.

        Raises:
            UserError: MLflow does not answer, or does not let this user write.
        """
        with told_as_user_error(self.client.tracking_uri):
            return self._settle()

    def _settle(self) -> tuple[View, list[Difference]]:
        written: list[Difference] = []
        for _ in range(MAX_ROUNDS):
            view = self.look()
            stages = {version.number: version.stage for version in view.versions}
            found = differences(view.state, aliases(self.client, self.name), stages)
            if not found:
                return view, written
            if len(self.journal.moves()) > len(view.moves):
                continue  # the aliases that were read may say more than the moves that were read before them
            for difference in found:
                self._write(difference)
            written += found
        raise RuntimeError(f"{self.name}: its aliases and tags do not become what was written to them")

    def _write(self, difference: Difference) -> None:
        from mlflow.exceptions import MlflowException

        client, name, key, wanted = self.client, self.name, difference.key, difference.wanted
        try:
            if difference.kind == "stage":
                patiently(lambda: client.set_model_version_tag(name, key, STAGE_TAG, wanted))
            elif wanted is None:
                patiently(lambda: client.delete_registered_model_alias(name, key))
            else:
                patiently(lambda: client.set_registered_model_alias(name, key, wanted))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the version has been deleted since
                raise
