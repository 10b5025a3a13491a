"""The model package: a folder that holds all it takes to predict with a model, and to know what it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatfix.errors import UserError
from flatfix.inference.card import Card

MODEL = "model.onnx"
CARD = "card.json"
REFERENCE = "reference.npz"
WEIGHTS = "weights.safetensors"
CONFIG = "config.yaml"

# MLflow's flavour keeps the model beside its own files, and everything else in this folder.
_BESIDE = "extra_files"
_PROFILE = "profile_"


class DamagedPackageError(UserError):
    """Report a model package that is not as it was made."""


class Reference(NamedTuple):
    """Hold validation pictures `[K, H, W, 3] uint8` and the logits `[K, C] float32` that onnxruntime gave in fp32."""

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class Package:
    """Hold a folder whose files are those that its card names.

    Attributes:
        folder: where it lies.
        card: what it says of itself.
        digest: sha256 of the card, and by that of everything in the package.
    """

    folder: Path
    card: Card
    digest: str

    def path(self, name: str) -> Path:
        """Return where a file of the package is.

        Raises:
            DamagedPackageError: when it is not there.
        """
        return _find(self.folder, name)

    @property
    def num_bytes(self) -> int:
        """Sum the sizes of the files."""
        return sum(self.path(name).stat().st_size for name in (CARD, *self.card.files))

    def reference(self) -> Reference:
        """Read the pictures that the model proves itself with."""
        with self._open_reference() as arrays:
            return Reference(arrays["images"], arrays["logits"])

    def profile(self) -> dict[str, NDArray[Any]]:
        """Read what drift is measured against; every key begins with `profile_`."""
        with self._open_reference() as arrays:
            return {name: arrays[name] for name in arrays if name.startswith(_PROFILE)}

    def _open_reference(self) -> np.lib.npyio.NpzFile:
        opened: np.lib.npyio.NpzFile = np.load(self.path(REFERENCE), allow_pickle=False)
        return opened


def open_package(folder: Path) -> Package:
    """Read the card of a package and check the sha256 of every file that it names.

    A file lies in the folder, or in `extra_files` below it, as MLflow's ONNX flavour stores them.

    Raises:
        DamagedPackageError: naming the file that is missing or was changed.
        UserError: for a package that another Flatfix made.
    """
    file = _find(folder, CARD)
    data = file.read_bytes()
    try:
        card = Card.from_json(data)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except ValueError as error:
        raise DamagedPackageError(f"{file}: {error}. Fetch or export the package again") from error
    for name, expected in card.files.items():
        found = sha256_of(_find(folder, name))
        if found != expected:
            raise DamagedPackageError(
                f"{_find(folder, name)}: changed since the package was made (its sha256 begins {found[:12]}, where "
                f"the card says {expected[:12]}). Fetch or export the package again"
            )
    return Package(folder, card, hashlib.sha256(data).hexdigest())


def save_reference(path: Path, reference: Reference, profile: dict[str, NDArray[Any]]) -> None:
    """Write `reference.npz`; every key of the profile begins with `profile_`."""
    assert all(name.startswith(_PROFILE) for name in profile), sorted(profile)
    arrays: dict[str, Any] = {**reference._asdict(), **profile}
    np.savez_compressed(path, allow_pickle=False, **arrays)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / _BESIDE / name):
        if path.is_file():
            return path
    raise DamagedPackageError(f"{folder}: no {name} in this model package. Fetch or export the package again")
