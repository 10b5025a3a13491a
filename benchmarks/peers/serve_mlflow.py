"""A model for `mlflow models serve` that takes the bytes of pictures: MLflow's ONNX flavour wants pixels as JSON.

MLflow reads this file as the code of the model ("models from code"); `save` writes the model.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from PIL import Image

SIZE = "size"


class Pictures(mlflow.pyfunc.PythonModel):
    """Decode with Pillow, and predict with MLflow's own flavour."""

    def load_context(self, context: Any) -> None:
        """Load the package."""
        self._model = mlflow.pyfunc.load_model(context.artifacts["package"])
        self._size = context.model_config[SIZE]

    def predict(self, context, model_input, params=None):  # MLflow takes type hints for a schema
        """Return the probabilities of the classes for the JPEGs in a data frame."""
        pixels = np.stack([self._pixels(data) for data in model_input["picture"]])
        logits = self._model.predict(pixels)["logits"]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (exponentials / exponentials.sum(axis=1, keepdims=True)).tolist()

    def _pixels(self, data: bytes) -> Any:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        return np.array(picture.resize((self._size, self._size), Image.Resampling.BILINEAR))


def save(package: Path, folder: Path, size: int) -> None:
    """Write a model around a package that MLflow's ONNX flavour loads; a binary column comes as base64."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    mlflow.pyfunc.save_model(
        str(folder),
        python_model=str(Path(__file__)),
        artifacts={"package": str(package)},
        model_config={SIZE: size},
        signature=ModelSignature(Schema([ColSpec(DataType.binary, "picture")])),
        pip_requirements=["mlflow"],
    )


if not __name__.startswith("benchmarks"):
    mlflow.models.set_model(Pictures())
