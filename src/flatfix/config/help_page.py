"""The page that `--help` prints."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from flatfix.config.schema import Option, Schema
from flatfix.console import say

COLUMN = 46


def show(name: str, conf: Path, schema: Schema, doc: str) -> None:
    """Print usage, the choices of every group, and every option with its default and meaning.

    Overrides on the command line count: `--help model=cnn` shows the options as that model sets them.
    """
    overrides = [word for word in sys.argv[1:] if not word.startswith("-")]
    with hydra.initialize_config_dir(str(conf)):
        cfg = hydra.compose(name, overrides=overrides, return_hydra_config=True)
    say(inspect.cleandoc(doc))
    say("\nGroups (group=choice; * is the default)")
    for line in _groups(conf, dict(cfg.hydra.runtime.choices)):
        say(line)
    say("\nOptions (option=value; the default is shown)")
    for line in _options(cfg, schema):
        say(line)


def _groups(conf: Path, chosen: dict[str, Any]) -> Iterator[str]:
    for folder in sorted(path for path in conf.iterdir() if path.is_dir() and path.name in chosen):
        choices = sorted(file.stem for file in folder.glob("*.yaml") if not file.stem.startswith("_"))
        listed = "  ".join(f"{choice}*" if choice == chosen[folder.name] else choice for choice in choices)
        yield f"  {folder.name:12}{listed}"


def _options(cfg: DictConfig, schema: Schema) -> Iterator[str]:
    section = None
    for key, rule in schema.items():
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if not isinstance(rule, Option) or not isinstance(node, DictConfig) or leaf not in node:
            continue
        if section != (section := key.partition(".")[0]):
            yield ""
        left = f"  {key}={_default(node, leaf)}"
        right = rule.meaning if rule.type is str and not rule.choices else f"{rule.meaning} ({rule.expected()})"
        if len(left) < COLUMN:
            yield f"{left:{COLUMN}}{right}"
        else:
            yield left
            yield f"{'':{COLUMN}}{right}"


def _default(node: DictConfig, leaf: str) -> str:
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    value = plain[leaf]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
