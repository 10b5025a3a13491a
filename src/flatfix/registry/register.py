"""Make a version of a run that qualified."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flatfix.errors import UserError
from flatfix.inference.card import Card
from flatfix.inference.package import CARD
from flatfix.registry.journal import Journal
from flatfix.registry.patience import patiently
from flatfix.registry.versions import CANDIDATE, DIGEST_TAG, STAGE_TAG, Version, list_versions
from flatfix.tracking.connection import connect, in_one_line, told_as_user_error

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

PENDING = "registration_pending"  # tag of a run that ends, until it is registered
PACKAGE = "package"  # the folder among a run's artifacts
MAX_NAME_CHARS = 200


@dataclass(frozen=True)
class Registration:
    """Say what came of registering a run.

    Attributes:
        version: its version; None for a run that may not have one.
        is_new: whether it was made now.
        reason: why there is no version.
    """

    version: Version | None
    is_new: bool
    reason: str

    def describe(self) -> str:
        """Return it in one line."""
        if self.version is None:
            return f"not registered: {self.reason}"
        done = "registered as" if self.is_new else "was registered before:"
        return f"{done} version {self.version.number} of {self.version.name}, {self.version.stage}"


def register(uri: str, run_id: str, name: str | None = None) -> Registration:
    """Make a version, a candidate, of a run that finished and qualified; for one that has a version, return that.

    Its tags: `stage`; `model_name`, `dataset_name`, `dataset_version`, `dataset_digest`, `git_commit` and `run_id` of
    the model; `package_digest`; and a tag for each metric, `val/<metric>` and `test/<metric>`. All but the
    errors of calibration are the package's own words, written with the version: there is no version without them.

    Args:
        uri: where MLflow keeps the run.
        run_id: the run.
        name: the registered model, made when it is missing; None for the name of the dataset.

    Raises:
        UserError: there is no such run, it has no whole package, or `name` cannot be used.
    """
    with told_as_user_error(uri):
        client = connect(uri)
        run = _run(client, run_id)
        if reason := _why_not(run):
            return Registration(None, False, reason)
        card, digest = _card(client, run_id)
        name = name or card.dataset["name"]
        check_name(name)
        Journal.create(client, name)
        held = _version_of(client, name, run_id)
        if held is None:
            source = f"{run.info.artifact_uri}/{PACKAGE}"
            tags = _tags(card, digest, run)
            made = patiently(lambda: client.create_model_version(name, source, run_id, tags, await_creation_for=0))
            held = _version_of(client, name, run_id)
            assert held is not None
            if held.number == int(made.version):
                _settle(client, run)
                return Registration(held, True, "")
            client.delete_model_version(name, made.version)  # two registered the run at once, and this is the second
        _settle(client, run)
        return Registration(held, False, "")


def check_name(name: str) -> None:
    """Refuse what MLflow or its search cannot take for the name of a registered model.

    Raises:
        UserError: naming registry.name.
    """
    if not re.fullmatch(r"\w[\w .-]*", name) or len(name) > MAX_NAME_CHARS:
        raise UserError(
            f"registry.name={name}: not a name for a registered model. Use letters, digits, spaces and . _ - "
            f"({MAX_NAME_CHARS} characters at most)."
        )


def _run(client: MlflowClient, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        return patiently(lambda: client.get_run(run_id))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(
            f"run_id={run_id}: no such run at this tracking.uri. train.py prints the id of its run."
        ) from error


def _why_not(run: Run) -> str | None:
    """Return why a run may not have a version, or None."""
    tags = run.data.tags
    if run.info.lifecycle_stage != "active":
        return "the run lies in MLflow's trash"
    if run.info.status != "FINISHED":
        return f"the run is {run.info.status}, not FINISHED"
    if tags.get("qualified") != "true":
        return f"the run did not qualify: {tags.get('qualification', 'it does not say that it did')}"
    return None


def _card(client: MlflowClient, run_id: str) -> tuple[Card, str]:
    """Return what the package of a run says of itself, and its sha256, once all its files are found to be there."""
    try:
        held = {
            Path(file.path).name: file.path
            for folder in (PACKAGE, f"{PACKAGE}/extra_files")
            for file in client.list_artifacts(run_id, folder)
        }
        if CARD not in held:
            raise UserError(
                f"run_id={run_id}: the run has no model package among its artifacts. It is one of a multirun, which "
                "makes them of what it registers, it is older than packages, or they could not be sent. "
                f"{_advice(run_id)}"
            )
        with tempfile.TemporaryDirectory() as folder:
            data = Path(client.download_artifacts(run_id, held[CARD], folder)).read_bytes()
        card = Card.from_json(data)
    except UserError:
        raise
    except Exception as error:  # whatever an artifact store raises
        raise UserError(f"run_id={run_id}: its model package cannot be read ({in_one_line(error)}).") from error
    if card.run_id != run_id:
        raise UserError(f"run_id={run_id}: its model package is that of run {card.run_id}. {_advice(run_id)}")
    missing = sorted({"MLmodel", *card.files} - held.keys())
    if missing:
        raise UserError(
            f"run_id={run_id}: its model package lacks {', '.join(missing)}, which could not be sent. {_advice(run_id)}"
        )
    return card, hashlib.sha256(data).hexdigest()


def _advice(run_id: str) -> str:
    return (
        f"Send it again, or train again: mlflow artifacts log-artifacts --run-id {run_id} --artifact-path {PACKAGE} "
        f"--local-dir <paths.run>/{PACKAGE}, with MLFLOW_TRACKING_URI set."
    )


def _tags(card: Card, digest: str, run: Run) -> dict[str, str]:
    return {
        STAGE_TAG: CANDIDATE,
        "model_name": card.model_name,
        **{f"dataset_{key}": card.dataset[key] for key in ("name", "version", "digest")},
        "git_commit": card.git_commit,
        "run_id": card.run_id,
        DIGEST_TAG: digest,
        **{key: repr(value) for key, value in run.data.metrics.items() if key.startswith("test/")},  # with calibration
        **{f"val/{metric}": repr(value) for metric, value in card.validation.items()},
        **{f"test/{metric}": repr(value) for metric, value in card.test.items()},
    }


def _settle(client: MlflowClient, run: Run) -> None:
    if PENDING in run.data.tags:
        client.delete_tag(run.info.run_id, PENDING)


def _version_of(client: MlflowClient, name: str, run_id: str) -> Version | None:
    return next((version for version in list_versions(client, name) if version.run_id == run_id), None)
