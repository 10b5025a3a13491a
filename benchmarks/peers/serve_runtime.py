"""Our decoder and our runtime, for a server of somebody else's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatfix.inference.decode import load
from flatfix.inference.package import open_package
from flatfix.inference.predictor import Predictor

PACKAGE = "package"


class Ours:
    """Answer pictures with a package, in fp32."""

    def __init__(self, folder: Path) -> None:
        self._predictor = Predictor(open_package(folder / PACKAGE), precision="fp32", cache_dir=folder / "cache")
        self._card = self._predictor.package.card

    def pixels(self, data: bytes) -> NDArray[np.uint8]:
        """Return a picture as `[size, size, 3]`."""
        return load(data, self._card.image_size, self._card.resize)

    def answers(self, pictures: list[NDArray[np.uint8]]) -> list[list[float]]:
        """Return the probabilities of the classes for each picture."""
        found: list[list[float]] = self._predictor.predict(np.stack(pictures)).probabilities.tolist()
        return found
