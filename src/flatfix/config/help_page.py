"""The page that `--help` prints."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from flatfix.config.groups import Group, Section, read_entry, settings
from flatfix.config.schema import Free, Option, Rule, Schema, Target
from flatfix.config.text import as_written
from flatfix.console import say

COLUMN = 40
WIDTH = 100
UNBROKEN = "\N{NO-BREAK SPACE}"
READING = """
option=value sets an option in place of the value below; ??? has to be given.
A name with a colon is a group, * its chosen one; group=choice takes another. "with x" marks what
choice x would bring; --help group=x shows this page with it. docs/options.md tells of every choice."""
FLAGS = """
-m         run every combination of the values that commas separate: -m option=1,2 group=x,y
--cfg job  print the config instead of running it; with --resolve every reference is followed
--version  print the version of Flatfix"""


def show(name: str, conf: Path, schema: Schema, doc: str) -> None:
    """Print usage, the choices of every group, and every option with its value and meaning.

    Overrides on the command line count: `--help model=cnn` shows the options as that model sets them.
    """
    overrides = [word for word in sys.argv[1:] if not word.startswith("-")]
    with hydra.initialize_config_dir(str(conf)):
        cfg = hydra.compose(name, overrides=overrides, return_hydra_config=True)
    composed: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))
    entry = read_entry(conf, name)
    lines = [inspect.cleandoc(doc), READING]
    for section in entry.sections(schema):
        lines.append("")
        lines += [_choices(group, cfg.hydra.runtime.choices.get(group.name)) for group in section.groups]
        rows = [_row(key, rule, composed, section) for key, rule in section.options.items()]
        lines += [_laid_out(*row) for row in rows if row]
    say("\n".join([*lines, FLAGS]))


def _choices(group: Group, chosen: str | None) -> str:
    names = [f"{choice.name}*" if choice.name == chosen else choice.name for choice in group.choices]
    return textwrap.fill(f"{group.name}: {'  '.join(names)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _row(key: str, rule: Rule, composed: Mapping[str, Any], section: Section) -> tuple[str, str] | None:
    """Return what stands left and right; None for a target that heads its section, and for what no choice sets."""
    if isinstance(rule, Target):
        return None if key == section.name else (key, rule.meaning)
    *parents, leaf = key.split(".")
    node: Any = composed
    for parent in parents:
        node = node.get(parent) if isinstance(node, Mapping) else None
    if isinstance(node, Mapping) and leaf in node:
        return f"{key}={as_written(node[leaf])}", _meaning(rule)
    others = [(choice.name, as_written(value)) for _, choice, value in settings(section.groups, key)]
    if not others:
        return None
    shown = others[0][1]
    names = [name if value == shown else f"{name} ({value})" for name, value in others]
    return f"{key}={shown}", f"with {', '.join(names)}: {_meaning(rule)}"


def _meaning(rule: Option | Free) -> str:
    """Return the meaning, then in brackets what is accepted, as far as the value does not tell."""
    if isinstance(rule, Free):
        return rule.meaning
    kind = {int: "int", list: "list"}.get(rule.type, "")
    accepted = rule.choices or (*rule.words, f"{kind} {', '.join(rule.bounds())}".strip())
    brackets = f"({' | '.join(accepted)})".replace(" ", UNBROKEN) if any(accepted) else ""
    return f"{rule.meaning} {brackets}"


def _laid_out(left: str, right: str) -> str:
    lines = textwrap.wrap(right, WIDTH - COLUMN, break_on_hyphens=False)
    heads = [f"  {left}", *[""] * len(lines)]
    if len(heads[0]) + 2 > COLUMN:
        lines.insert(0, "")
    laid_out = [f"{head:{COLUMN}}{line}".rstrip() for head, line in zip(heads, lines, strict=False)]
    return "\n".join(laid_out).replace(UNBROKEN, " ")
