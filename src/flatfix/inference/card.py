"""What a model package says of itself."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flatfix.errors import UserError
from flatfix.inference.decision import Decision

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Permit:
    """Allow one pair of runtime and precision, with what was measured against onnxruntime in fp32 before it was given.

    Attributes:
        runtime: `onnxruntime` or `openvino`.
        precision: `fp32` or `bf16`.
        num_pictures: evaluation pictures that were compared.
        top1_agreement: share of them with the same most probable class, 0 to 1.
        decision_agreement: share of them with the same answer, temperature and threshold applied.
        max_difference: largest difference of a logit.
    """

    runtime: str
    precision: str
    num_pictures: int
    top1_agreement: float
    decision_agreement: float
    max_difference: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Compare the exported model with the one that was trained: onnxruntime with torch, both in fp32.

    Attributes:
        max_difference: largest difference of a logit.
        tolerance: what it may be; in fp32, the reference pictures must be answered within it anywhere.
        top1_agreement: share of the pictures with the same most probable class, 0 to 1.
        num_pictures: pictures that were compared.
    """

    max_difference: float
    tolerance: float
    top1_agreement: float
    num_pictures: int


@dataclass(frozen=True, kw_only=True)
class Card:
    """Describe a model package.

    Attributes:
        model_name: of the backbone.
        classes: names in label order.
        image_size: pixels a side of the square that the model takes.
        resize: how a picture becomes that square: `squash`, `crop` or `pad`.
        decision: how logits become an answer.
        dataset: name, version and digest of what it was trained on.
        validation: metrics on the validation split, as it decides; nan where one is not defined.
        test: likewise on the test split.
        qualification: in words, how the run met its thresholds.
        permits: pairs of runtime and precision that answer as the model was evaluated.
        parity: of the export.
        opset: of `model.onnx`.
        num_features: width of the features.
        run_id: MLflow run that trained it.
        git_commit: of the code that trained it.
        versions: of the packages that exported it, by name.
        created: UTC, ISO 8601.
        files: sha256 of every other file of the package, by name.
    """

    model_name: str
    classes: tuple[str, ...]
    image_size: int
    resize: str
    decision: Decision
    dataset: Mapping[str, str]
    validation: Mapping[str, float]
    test: Mapping[str, float]
    qualification: str
    permits: tuple[Permit, ...]
    parity: Parity
    opset: int
    num_features: int
    run_id: str
    git_commit: str
    versions: Mapping[str, str]
    created: str
    files: Mapping[str, str]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        """Write the card as indented JSON, and last the sha256 of what stands before; nan becomes null."""
        values = asdict(self) | {"decision": self.decision.to_dict()}
        for split in ("validation", "test"):
            values[split] = {name: None if math.isnan(value) else value for name, value in values[split].items()}
        return _json({**values, "sha256": hashlib.sha256(_json(values)).hexdigest()})

    @classmethod
    def from_json(cls, data: bytes) -> Card:
        """Read a card.

        Raises:
            ValueError: for something that is not a card or was altered.
            UserError: for another schema version.
        """
        try:
            values: dict[str, Any] = json.loads(data)
            found = values["schema_version"]
            if found == SCHEMA_VERSION:
                if values.pop("sha256") != hashlib.sha256(_json(values)).hexdigest():
                    raise ValueError("its sha256 differs")
                for split in ("validation", "test"):
                    metrics = values[split].items()
                    values[split] = {name: math.nan if value is None else value for name, value in metrics}
                values["classes"] = tuple(values["classes"])
                values["decision"] = Decision.from_dict(values["decision"])
                values["permits"] = tuple(Permit(**permit) for permit in values["permits"])
                values["parity"] = Parity(**values["parity"])
                return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the card of a model package ({type(error).__name__}: {error})") from error
        raise UserError(
            f"a card of schema version {found}, where this Flatfix reads {SCHEMA_VERSION}: "
            "use the Flatfix that made the package, or train again"
        )


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
