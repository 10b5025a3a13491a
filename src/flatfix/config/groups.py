"""The groups of `conf/` with all their choices, read from the files: what Hydra composes has only the chosen ones."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from flatfix.config.schema import Rule, Schema, Target

HYDRA = "hydra"  # its own config
PRIVATE = "local"  # conf/local holds the settings of one machine, see train.yaml


@dataclass(frozen=True)
class Choice:
    """Describe one file of a group; it is read when it is asked for, since `--help` has half a second.

    Attributes:
        name: as in `group=name`.
        conf: the folder of all groups.
        file: the file.
        package: path of the node that it fills, empty where it may set anything.
    """

    name: str
    conf: Path
    file: Path
    package: str

    @functools.cached_property
    def meaning(self) -> str:
        """The comment on top of the file, in one line."""
        return _comment(self.file)

    @functools.cached_property
    def values(self) -> Mapping[str, Any]:
        """Path and value of what the file sets for us, `_target_` included, as it is written there."""
        composed = {key: value for key, value in _composed(self.conf, self.file).items() if key != HYDRA}
        return dict(_leaves(composed, f"{self.package}." if self.package else ""))


@dataclass(frozen=True)
class Group:
    """Describe a group of the config.

    Attributes:
        name: as in `name=choice`.
        default: the choice where the command line names none, None for no choice.
        package: path of the node that the choices fill, empty where they may set anything.
        choices: by name.
    """

    name: str
    default: str | None
    package: str
    choices: tuple[Choice, ...]


class Setting(NamedTuple):
    """Tell what a choice sets an option to: a value, or a mapping where the choice sets what lies below the option."""

    group: Group
    choice: Choice
    value: Any


@dataclass(frozen=True)
class Section:
    """Bring together the options whose paths begin with `name`, and the groups that set them.

    The section without a name has the options without a dot, and the groups that may set anything.
    """

    name: str
    groups: tuple[Group, ...]
    options: Mapping[str, Rule]


@dataclass(frozen=True)
class Entry:
    """Describe what an entry point composes.

    Attributes:
        meaning: the comment on top of its file, in one line.
        values: path and value of what the file itself sets.
        groups: in the order of its defaults list.
    """

    meaning: str
    values: Mapping[str, Any]
    groups: tuple[Group, ...]

    def sections(self, schema: Schema) -> list[Section]:
        """Divide the schema into sections, in its order."""
        options: dict[str, dict[str, Rule]] = {"": {}}
        for key, rule in schema.items():
            first, dot, _ = key.partition(".")
            name = first if dot or isinstance(rule, Target) else ""  # a target heads the section of its arguments
            options.setdefault(name, {})[key] = rule
        return [
            Section(name, tuple(group for group in self.groups if group.package.partition(".")[0] == name), rules)
            for name, rules in options.items()
        ]


def read_entry(conf: Path, name: str) -> Entry:
    """Read `<conf>/<name>.yaml`, and every choice of the groups in its defaults list."""
    file = conf / f"{name}.yaml"
    content = _content(file)
    defaults = [default for default in content["defaults"] if isinstance(default, dict)]
    chosen = {key.removeprefix("optional "): choice for default in defaults for key, choice in default.items()}
    groups = [
        _group(conf, key, default)
        for key, default in chosen.items()
        if key != PRIVATE and not key.startswith("override ")
    ]
    own = {key: value for key, value in content.items() if key not in ("defaults", HYDRA)}
    return Entry(_comment(file), dict(_leaves(own)), tuple(groups))


def settings(groups: Iterable[Group], option: str) -> list[Setting]:
    """Return what each choice that sets the option sets it to, the default choice of its group first."""
    found = []
    prefix = f"{option}."
    for group in groups:
        for choice in group.choices:
            values = choice.values
            below = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
            if option in values or below:
                found.append(Setting(group, choice, values.get(option, below)))
    return sorted(found, key=lambda setting: setting.choice.name != setting.group.default)


def _group(conf: Path, name: str, default: str | None) -> Group:
    folder, _, package = name.partition("@")
    files = sorted((conf / folder).glob("[!_]*.yaml"))
    is_global = any("# @package _global_" in file.read_text(encoding="utf-8") for file in files)
    package = "" if is_global else package or folder
    return Group(name, default, package, tuple(Choice(file.stem, conf, file, package) for file in files))


def _composed(conf: Path, file: Path) -> dict[str, Any]:
    """Return what a choice sets with what it builds on, for the forms of Hydra's defaults lists that conf/ uses.

    These are `- _common` for a file beside it and `- /augment@first: cifar` for a choice of a group under a key.
    """
    content = _content(file)
    composed: dict[str, Any] = {}
    for default in content.get("defaults", []):
        if isinstance(default, str):
            composed = _overlaid(composed, _composed(conf, file.parent / f"{default}.yaml"))
            continue
        ((key, choice),) = default.items()
        if not key.startswith("override "):
            group, _, node = key.removeprefix("/").partition("@")
            composed = _overlaid(composed, {node: _composed(conf, conf / group / f"{choice}.yaml")})
    return _overlaid(composed, {key: value for key, value in content.items() if key != "defaults"})


@functools.cache  # every choice of a group reads the group's _common.yaml
def _content(file: Path) -> Mapping[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _comment(file: Path) -> str:
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def _overlaid(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `top` over it, mapping by mapping."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _overlaid(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value under its dotted path; an empty mapping is a value."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif key != "_partial_":
            yield f"{prefix}{key}", value
