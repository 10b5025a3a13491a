"""A registry whose versions answer, and answer differently: for servers to follow, without training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from flatfix.inference.card import Card
from flatfix.inference.package import (
    CARD,
    MODEL,
    REFERENCE,
    Package,
    Reference,
    open_package,
    save_reference,
    sha256_of,
)
from flatfix.inference.runtime import ONNXRUNTIME, open_runtime
from flatfix.registry.register import PACKAGE, register
from flatfix.registry.versions import Version
from flatfix.serving import settings
from flatfix.tracking.connection import connect, preflight
from tests.helpers.mlflow_db import fresh_database
from tests.helpers.packages import make_package

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NAME = "tires"


def two_packages(folder: Path) -> tuple[Package, Package]:
    """Make the package of a small classifier, in some seconds, and one that always says the other class."""
    first = make_package(folder / "first")
    return first, scaled(first, folder / "second", -1)


def scaled(package: Package, folder: Path, factor: float) -> Package:
    """Make a package whose logits are `factor` times those of another, and which proves itself with its own."""
    shutil.copytree(package.folder, folder)
    model = onnx.load(folder / MODEL)
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    model.graph.node.append(helper.make_node("Mul", ["before", "factor"], ["logits"]))
    onnx.checker.check_model(model)
    onnx.save(model, folder / MODEL)
    images = package.reference().images
    logits, _ = open_runtime(folder / MODEL, *ONNXRUNTIME, 1).run(images)
    save_reference(folder / REFERENCE, Reference(images, logits), package.profile())
    return resealed(folder)


def wrong(package: Package, folder: Path) -> Package:
    """Make a package whose files are whole, and whose reference pictures its model does not answer as it should."""
    shutil.copytree(package.folder, folder)
    reference = package.reference()
    save_reference(folder / REFERENCE, Reference(reference.images, reference.logits + 1), package.profile())
    return resealed(folder)


def resealed(folder: Path, **changes: Any) -> Package:
    """Write the card of a package anew, for its files as they are now."""
    file = next(path for path in (folder / CARD, folder / "extra_files" / CARD) if path.exists())
    card = Card.from_json(file.read_bytes())
    files = {name: sha256_of(folder / name) for name in card.files}
    file.write_bytes(replace(card, files=files, **changes).to_json())
    return open_package(folder)


@dataclass(frozen=True)
class Shelf:
    """A registered model in an MLflow of its own.

    Attributes:
        folder: of what it writes.
        uri: of MLflow.
    """

    folder: Path
    uri: str

    @property
    def client(self) -> MlflowClient:
        return connect(self.uri)

    def add(self, package: Package, *, is_remote: bool = False) -> Version:
        """Register a package as that of a run of its own; a remote one has to be fetched into a cache."""
        client = self.client
        tags = {"qualified": "true", "qualification": package.card.qualification}
        run_id: str = client.create_run(preflight(self.uri, "flatfix"), tags=tags).info.run_id
        folder = self.folder / "logged" / run_id
        shutil.copytree(package.folder, folder)
        resealed(folder, run_id=run_id)
        (folder / "MLmodel").write_text("flavors: {}\n")
        client.log_artifacts(run_id, str(folder), PACKAGE)
        client.set_terminated(run_id)
        version = register(self.uri, run_id, NAME).version
        assert version is not None
        if not is_remote:
            return version
        client.delete_model_version(NAME, str(version.number))
        source = f"runs:/{run_id}/{PACKAGE}"
        made = client.create_model_version(NAME, source, run_id, dict(version.tags), await_creation_for=0)
        return replace(version, number=int(made.version), source=source, created_ms=made.creation_timestamp)

    def point(self, alias: str, version: Version | int) -> None:
        """Let an alias point at a version, as a promotion or a rollback does in the end."""
        number = version if isinstance(version, int) else version.number
        self.client.set_registered_model_alias(NAME, alias, str(number))

    def clear(self, alias: str) -> None:
        """Take an alias away."""
        self.client.delete_registered_model_alias(NAME, alias)

    def artifacts(self, version: Version) -> Path:
        """Return where MLflow keeps the package of a version."""
        address = self.client.get_run(version.run_id).info.artifact_uri
        return Path(address.removeprefix("file://"), PACKAGE)

    def copy(self, folder: Path) -> Shelf:
        """Return a registry of the same versions, with the same artifacts, and aliases of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.uri.removeprefix("sqlite:///"), folder / "mlflow.db")
        return Shelf(folder, f"sqlite:///{folder / 'mlflow.db'}")

    def settings(self, **changes: Any) -> settings.Settings:
        """Return the settings of a server of this shelf."""
        paths = {"output": self.folder / "outputs", "cache": self.folder / "cache"}
        chosen = settings.Settings.of(settings.read(None))
        return replace(chosen, **{"uri": self.uri, **paths, "batch_size": 2, **changes})


def empty_shelf(folder: Path) -> Shelf:
    """Return a registry without a registered model."""
    os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # as `Source` does, and before it
    return Shelf(folder, fresh_database(folder / "mlflow"))


def promoted(folder: Path, packages: Sequence[Package]) -> tuple[Shelf, list[Version]]:
    """Register packages, the first of them in production."""
    shelf = empty_shelf(folder)
    versions = [shelf.add(package) for package in packages]
    shelf.point("production", versions[0])
    return shelf, versions
