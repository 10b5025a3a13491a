"""Configuration as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flatfix.errors import UserError


def to_yaml(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML, in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def from_yaml(text: str) -> dict[str, Any]:
    """Read what `to_yaml` wrote."""
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.create(text)))


def layered(*texts: str) -> DictConfig:
    """Read YAML texts, each of which has its way over those before it.

    Raises:
        UserError: for a text that is not a mapping in YAML.
    """
    try:
        return cast("DictConfig", OmegaConf.merge(*(OmegaConf.create(text) for text in texts)))
    except (YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"not a mapping in YAML: {' '.join(str(error).split())[:300]}") from error


def as_written(value: Any) -> str:
    """Return a value as the command line takes it: `null`, `true`, `{dropout: 0.3}`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_written(each)}" for key, each in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
