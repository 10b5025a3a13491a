"""The card of an imaginary model."""

from __future__ import annotations

from typing import Any

from flatfix.inference.card import Card, Parity
from flatfix.inference.decision import Decision


def make_card(**changes: Any) -> Card:
    """Return the card of a model for pictures of 32 pixels a side."""
    settings: dict[str, Any] = {
        "model_name": "cnn",
        "classes": ("ok", "defective"),
        "image_size": 32,
        "resize": "squash",
        "decision": Decision(),
        "dataset": {"name": "tires", "version": "v1", "digest": "0123456789abcdef"},
        "validation": {"f1": 0.9},
        "test": {"f1": 0.89},
        "qualification": "f1 0.9 reaches min_f1 0.8",
        "permits": (),
        "parity": Parity(max_difference=1e-5, tolerance=1e-3, top1_agreement=1.0, num_pictures=64),
        "opset": 20,
        "num_features": 64,
        "run_id": "5b0f",
        "git_commit": "c0ffee",
        "versions": {},
        "created": "2026-11-22T06:00:00+00:00",
        "files": {},
    }
    return Card(**{**settings, **changes})
