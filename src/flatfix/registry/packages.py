"""The package of a version: as MLflow keeps it, and fetched from there."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from flatfix.console import say
from flatfix.errors import UserError
from flatfix.files import filling, locked, needing_room
from flatfix.inference.card import Card
from flatfix.inference.package import CARD, MODEL, DamagedPackageError, Package, open_package
from flatfix.registry.versions import DIGEST_TAG, Version
from flatfix.tracking.connection import tame_mlflow

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.tracking import MlflowClient

REQUIREMENTS = ("mlflow", "onnx", "onnxruntime")  # of whoever loads a package with MLflow alone
NUM_KEPT = 8  # fetched packages
IN_USE_S = 3600.0  # after which whoever fetched a package has long loaded it
SPARE_BYTES = 2**20  # that a disk needs beside the files of a package
MAX_NAME_CHARS = 40  # of a folder's name, which must not be too long for a disk


def as_mlflow_model(package: Package, folder: Path) -> Package:
    """Write a package as a model of MLflow's ONNX flavour, which `mlflow.pyfunc` loads without Flatfix.

    Args:
        package: what is written, byte by byte, beside MLflow's own files.
        folder: which must not exist or be empty; it appears whole or not at all.
    """
    tame_mlflow()
    import mlflow.onnx
    import onnx

    with filling(folder) as draft:
        mlflow.onnx.save_model(
            onnx.load(package.path(MODEL)),
            str(draft),
            signature=_signature(package.card),
            input_example={"images": package.reference().images[:1]},
            metadata=_facts(package),
            onnx_execution_providers=["CPUExecutionProvider"],
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
            extra_files=[str(package.path(name)) for name in (CARD, *package.card.files) if name != MODEL],
            save_as_external_data=False,
        )
        shutil.copyfile(package.path(MODEL), draft / MODEL)  # MLflow wrote it anew, perhaps in other bytes
    return open_package(folder)


def fetch_package(client: MlflowClient, version: Version, cache_dir: Path) -> Package:
    """Return the package of a registered version; every call checks every file.

    What is not on this machine's disks is fetched once, into `cache_dir/packages`, for all its processes. Files that
    were damaged there are fetched again.

    Raises:
        DamagedPackageError: when files are missing or changed where MLflow keeps them.
        UserError: when MLflow's artifacts cannot be read, or another Flatfix made the package.
    """
    local = _local_folder(version.source)
    try:
        package = _cached(client, version, cache_dir) if local is None else open_package(local)
    except DamagedPackageError as error:
        raise DamagedPackageError(f"{_title(version)}: {error}. {_advice(version)}") from error
    except UserError as error:
        raise UserError(f"{_title(version)}: {error}") from error
    if not _is_registered(package, version):
        raise DamagedPackageError(
            f"{_title(version)}: {version.source} holds another package than was registered. {_advice(version)}"
        )
    return package


def forget_unused(cache_dir: Path) -> None:
    """Remove fetched packages from `cache_dir`, but for the `NUM_KEPT` used last and any used in the last hour."""
    packages = [path for path in (cache_dir / "packages").glob("[!.]*") if path.is_dir()]
    for folder in sorted(packages, key=_last_used, reverse=True)[NUM_KEPT:]:
        if time.time() - _last_used(folder) > IN_USE_S:
            with _lock(folder), suppress(FileNotFoundError):  # another process may be at it too
                shutil.rmtree(folder)


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another process has removed it meanwhile
        return 0


def _is_registered(package: Package, version: Version) -> bool:
    return package.digest == version.tags.get(DIGEST_TAG, package.digest)


def _signature(card: Card) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    pixels, floats = np.dtype(np.uint8), np.dtype(np.float32)
    logits = TensorSpec(floats, (-1, len(card.classes)), "logits")
    features = TensorSpec(floats, (-1, card.num_features), "features")
    images = TensorSpec(pixels, (-1, card.image_size, card.image_size, 3), "images")
    return ModelSignature(Schema([images]), Schema([logits, features]))


def _facts(package: Package) -> dict[str, Any]:
    card = package.card
    return {
        "model_name": card.model_name,
        "classes": list(card.classes),
        "image_size": card.image_size,
        "resize": card.resize,
        **{f"dataset_{key}": value for key, value in card.dataset.items()},
        "run_id": card.run_id,
        "package_digest": package.digest,
    }


def _local_folder(source: str) -> Path | None:
    """Return the folder that the address of artifacts names, or None where it is not one of this machine."""
    parts = urlsplit(source)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(source)


def _cached(client: MlflowClient, version: Version, cache_dir: Path) -> Package:
    key = hashlib.sha256(version.source.encode()).hexdigest()[:16]
    folder = cache_dir / "packages" / f"{version.name[:MAX_NAME_CHARS]}-{version.number}-{key}"
    with (
        needing_room("paths.cache", f"a package in {folder.parent}", "Make some, or name another folder."),
        _lock(folder),
    ):
        if folder.is_dir():
            with suppress(DamagedPackageError):
                if _is_registered(package := open_package(folder), version):
                    os.utime(folder)  # for `forget_unused`
                    return package
            say(f"{folder}: damaged, fetched again")
            shutil.rmtree(folder)
        _download(client, version, folder)
        return open_package(folder)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other threads and processes from what is to become `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        yield


def _download(client: MlflowClient, version: Version, folder: Path) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with filling(folder) as draft:
        try:
            repository = get_artifact_repository(version.source, tracking_uri=client.tracking_uri)
            repository.download_artifacts("", str(draft))
        except Exception as error:  # whatever an artifact store raises
            if _lacks_room(client, version, draft):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"its package cannot be fetched from {version.source} ({reason}). Start or repair "
                "what keeps MLflow's artifacts, or give this machine access to it."
            ) from error


def _lacks_room(client: MlflowClient, version: Version, draft: Path) -> bool:
    """Say whether the disk has no room for a package: the errors that MLflow raises then do not always tell."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with suppress(Exception):  # a store that is down does not tell a size either
        repository = get_artifact_repository(version.source, tracking_uri=client.tracking_uri)
        fetched = sum(512 * path.stat().st_blocks for path in draft.rglob("*"))
        return _size(repository) + SPARE_BYTES > fetched + shutil.disk_usage(draft).free
    return False


def _size(repository: ArtifactRepository, folder: str | None = None) -> int:
    """Return the bytes of all artifacts in a folder and below it."""
    found = repository.list_artifacts(folder)
    return sum(_size(repository, each.path) if each.is_dir else each.file_size or 0 for each in found)


def _title(version: Version) -> str:
    return f"version {version.number} of {version.name}"


def _advice(version: Version) -> str:
    return f"Restore the artifacts of run {version.run_id}, or use another version."
