"""A registered version as a model that predicts, in the runtime that serves it: without torch."""

from __future__ import annotations

from pathlib import Path

from flatfix.inference.predictor import Predictor
from flatfix.prediction.model import Model
from flatfix.registry.packages import fetch_package
from flatfix.registry.versions import find, registered_name
from flatfix.tracking.connection import connect, told_as_user_error


def open_registered(uri: str, name: str | None, which: str, *, runtime: str, precision: str, cache_dir: Path) -> Model:
    """Fetch the package of a registered version, and load it.

    Args:
        uri: of MLflow.
        name: of the registered model; None for the only one.
        which: alias or number of the version.
        runtime: see `Predictor`.
        precision: likewise.
        cache_dir: for packages that were fetched, and what the calibration of `auto` found.

    Raises:
        UserError: naming the option that does not work.
    """
    with told_as_user_error(uri):
        client = connect(uri)
        version = find(client, registered_name(client, name), which)
    package = fetch_package(client, version, cache_dir)
    predictor = Predictor(package, runtime, precision, cache_dir=cache_dir)
    card = package.card
    title = f"{card.model_name} as {version.name} version {version.number}, {predictor.runtime} {predictor.precision}"
    return Model(f"alias={which}", title, card.classes, card.image_size, card.resize, card.decision, predictor.predict)
