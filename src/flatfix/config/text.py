"""Configuration as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf


def to_yaml(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML, in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))
