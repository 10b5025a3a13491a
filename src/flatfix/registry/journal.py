"""The history of a registered model: every move there was, in one order, for good.

MLflow has no transactions, and of two who write the same tag or alias the later wins unseen. Two of its writes are
different, and the history is made of them alone:

- A registered model is created once, tags included (its name is a primary key). Its tag `flatfix.journal` names the
  run that holds its history.
- A parameter of a run is written once ((run, key) is a primary key): whoever comes second is refused. The parameter
  `move-000017` is move 17. So whoever writes it has decided in sight of moves 1 to 16, or has failed.

Both hold in sqlite and in PostgreSQL, with a server in front of them and without, for any number of processes:
tests/integration/test_registry_concurrency.py.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from flatfix.errors import UserError
from flatfix.registry.patience import patiently
from flatfix.registry.versions import JOURNAL_TAG
from flatfix.tracking.connection import preflight

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "flatfix-registry"
SCHEMA_VERSION = 1
MAX_CHARS = 6000  # of a parameter in MLflow
MAX_REASON_CHARS = 1000


class MovedMeanwhile(Exception):
    """Somebody else has made the move of this number."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """What one gate said.

    Attributes:
        name: its option below `gates`.
        is_passed: None for a gate that is off, or has nothing to compare with.
        detail: the numbers, in one line.
    """

    name: str
    is_passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Move:
    """One version from one stage to another.

    Attributes:
        number: 1 for the first of a registered model.
        action: promote or rollback.
        version: that moved.
        from_stage: where it was.
        to_stage: staging or production.
        replaced: the version that was live until then, when this one went live.
        metric: the validation metric that chose it, if one did.
        value: of that metric.
        who: user and machine.
        when: in UTC, ISO 8601.
        why: the reason somebody gave.
        forced: whether gates or staging were passed over.
        gates: what they said.
    """

    number: int
    action: str
    version: int
    from_stage: str
    to_stage: str
    replaced: int | None
    metric: str | None
    value: float | None
    who: str
    when: str
    why: str | None = None
    forced: bool = False
    gates: tuple[GateResult, ...] = ()


class Journal:
    """The moves of one registered model; `open` it.

    Args:
        client: of the MLflow that holds it.
        run_id: the run whose parameters are the moves.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    @classmethod
    def open(cls, client: MlflowClient, name: str) -> Journal:
        """Return the journal of a registered model.

        Raises:
            UserError: Flatfix did not make this registered model, or its history was deleted.
        """
        from mlflow.exceptions import MlflowException

        model = patiently(lambda: client.get_registered_model(name))
        if JOURNAL_TAG not in model.tags:
            raise UserError(
                f"registry.name={name}: a registered model of this name is there, and Flatfix did not make it: it has "
                "no history. Choose another registry.name, or rename that one in MLflow."
            )
        run_id = model.tags[JOURNAL_TAG]
        try:
            run = patiently(lambda: client.get_run(run_id))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(
                f"registry.name={name}: its history, run {run_id} of the experiment {EXPERIMENT}, was deleted from "
                "MLflow for good. Register its runs again under another registry.name."
            ) from error
        if run.info.lifecycle_stage != "active":
            raise UserError(
                f"registry.name={name}: its history, run {run_id} of the experiment {EXPERIMENT}, lies in MLflow's "
                f"trash. Restore it, with MLFLOW_TRACKING_URI set: mlflow runs restore --run-id {run_id}"
            )
        return cls(client, run_id)

    @classmethod
    def create(cls, client: MlflowClient, name: str) -> Journal:
        """Return the journal of a registered model; both are made where there is no such model yet.

        Raises:
            UserError: as `open` does.
        """
        from mlflow.exceptions import MlflowException

        try:
            return cls.open(client, name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        experiment_id = preflight(client.tracking_uri, EXPERIMENT)
        run_id = patiently(lambda: client.create_run(experiment_id, run_name=f"history of {name}")).info.run_id
        patiently(lambda: client.set_terminated(run_id))  # it goes on taking parameters
        try:
            patiently(lambda: client.create_registered_model(name, tags={JOURNAL_TAG: run_id}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        journal = cls.open(client, name)
        if journal.run_id != run_id:  # another process was first
            patiently(lambda: client.delete_run(run_id))
        return journal

    def moves(self) -> list[Move]:
        """Return every move, oldest first.

        Raises:
            UserError: a later Flatfix has made one of them.
        """
        texts = self._texts()
        return [_parse(number, texts[_key(number)]) for number in range(1, len(texts) + 1)]

    def append(self, move: Move) -> None:
        """Write a move whose number is that of the newest move read, and one.

        Raises:
            MovedMeanwhile: this number has been taken since.
        """
        from mlflow.exceptions import MlflowException

        key, text = _key(move.number), _text(move)
        try:
            patiently(lambda: self._client.log_param(self.run_id, key, text, synchronous=True))
        except MlflowException:
            # An answer that was lost may have told of a success.
            written = self._texts().get(key)
            if written is None:
                raise
            if written != text:
                raise MovedMeanwhile(f"move {move.number}") from None

    def _texts(self) -> Mapping[str, str]:
        parameters: Mapping[str, str] = patiently(lambda: self._client.get_run(self.run_id)).data.params
        return {key: text for key, text in parameters.items() if key.startswith("move-")}


def _key(number: int) -> str:
    return f"move-{number:06d}"


def _text(move: Move) -> str:
    """Return a move as JSON that no other writer can have written; what the gates say is cut where it is too long."""
    unique = uuid.uuid4().hex
    for limit in (MAX_CHARS, 400, 200, 100):
        shorter = replace(move, gates=tuple(replace(gate, detail=_cut(gate.detail, limit)) for gate in move.gates))
        fields = {key: value for key, value in asdict(shorter).items() if key != "number"}
        text = json.dumps({"schema_version": SCHEMA_VERSION, "id": unique, **fields}, ensure_ascii=False)
        if len(text) <= MAX_CHARS:
            return text
    raise AssertionError(f"move {move.number} is too long for MLflow")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _parse(number: int, text: str) -> Move:
    fields: dict[str, Any] = json.loads(text)
    del fields["id"]
    if (found := fields.pop("schema_version")) != SCHEMA_VERSION:
        raise UserError(
            f"move {number} of the history has schema_version {found}, where this Flatfix reads {SCHEMA_VERSION}: use "
            "the Flatfix that made the move"
        )
    gates: Iterable[Mapping[str, Any]] = fields.pop("gates")
    return Move(number=number, gates=tuple(GateResult(**gate) for gate in gates), **fields)
