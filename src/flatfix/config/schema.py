"""Whole-config validation: a table with one line an option, and the check of a composed config against it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flatfix.errors import UserError, did_you_mean

TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}


@dataclass(frozen=True)
class Option:
    """State what one option accepts.

    `low` and `high` are inclusive bounds, `above` and `below` exclusive ones. An optional option may be null or absent.
    `words` are texts that are accepted beside values of the type.
    """

    type: type
    meaning: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    words: tuple[str, ...] = ()

    def fault(self, value: Any) -> str | None:
        """Return what is wrong with `value`, or None."""
        if value is None:
            return None if self.optional else f"needs a value ({self.expected()})"
        if value == "":
            return f"is empty, expected {self.expected()}"
        if isinstance(value, str) and value in self.words:
            return None
        if self.choices:
            near = did_you_mean(str(value), self.choices)
            valid = f"{value!r} is not a valid choice. Valid: {', '.join(self.choices)}.{near}"
            return None if str(value) in self.choices else valid
        if not _has_type(value, self.type):
            return f"{value!r} is not {self.expected()}"
        if self.type is not str and isinstance(value, float | int) and not self._in_range(value):
            return f"{value!r} is out of range: expected {self.expected()}"
        return None

    def expected(self) -> str:
        """Describe the accepted values in a few words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return " or ".join([*self.words, " ".join([TYPE_NAMES[self.type], " and ".join(self.bounds())]).strip()])

    def bounds(self) -> list[str]:
        """Return the bounds in signs, such as `> 0`."""
        return [
            f"{sign} {bound:.10g}"
            for sign, bound in ((">=", self.low), (">", self.above), ("<=", self.high), ("<", self.below))
            if bound is not None
        ]

    def _in_range(self, value: float) -> bool:
        return math.isfinite(value) and (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class Target:
    """State that a node is built from its `_target_`, which must lie below one of `packages`.

    Its arguments are checked against the target's signature when it is built; those that have an `Option` of their own
    are checked for type and range as well.
    """

    packages: tuple[str, ...]
    meaning: str
    optional: bool = False


@dataclass(frozen=True)
class Free:
    """State that a node is a mapping whose keys are the user's own."""

    meaning: str


Rule = Option | Target | Free
Schema = Mapping[str, Rule]


def validate(cfg: DictConfig, schema: Schema, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Check a composed config against `schema` and return it resolved, as plain Python values.

    Args:
        cfg: what Hydra composed.
        schema: what every option accepts.
        overrides: the command line, which tells how a text that YAML takes for a number was written.

    Raises:
        UserError: naming each option that is unknown, missing, of the wrong type or out of range.
    """
    config = _resolved(cfg)
    values = dict(_leaves(config, schema))
    faults = [_unknown(key, schema) for key in values if key not in schema]
    for key, rule in schema.items():
        if key not in values and (_may_be_absent(rule) or _is_below(key, values)):
            continue
        fault = _fault(values.get(key), rule)
        if fault:
            faults.append(f"{key}: {fault}")
    if faults:
        raise UserError("\n".join(faults))
    _write_texts(config, schema, dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word))
    return config


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(f"{error.full_key}: {error.__cause__}") from error
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _write_texts(config: dict[str, Any], schema: Schema, written: Mapping[str, str]) -> None:
    """Turn what YAML took for a number back into the text that the option is: `dataset.version=2024_01_15`."""
    for key, rule in schema.items():
        *parents, leaf = key.split(".")
        node: Any = config
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(rule, Option) and rule.type is str and isinstance(node, dict):
            value = node.get(leaf)
            if isinstance(value, int | float):
                node[leaf] = written.get(key, str(value))


def _leaves(node: Mapping[str, Any], schema: Schema, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each option that the config sets; of a target's arguments, those that the schema lists."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if key not in schema and isinstance(value, Mapping) and value:
            yield from _leaves(value, schema, f"{key}.")
            continue
        yield key, value
        if isinstance(schema.get(key), Target) and isinstance(value, Mapping):
            yield from (leaf for leaf in _leaves(value, schema, f"{key}.") if leaf[0] in schema)


def _may_be_absent(rule: Rule) -> bool:
    return isinstance(rule, Option) and rule.optional


def _is_below(key: str, values: Mapping[str, Any]) -> bool:
    """Say whether a node above it is a value: a target, which need not have the argument, or a fault of its own."""
    return any(key.startswith(f"{name}.") for name in values)


def _unknown(key: str, schema: Schema) -> str:
    under = _names_under(f"{key}.", schema)
    if under:
        return f"{key}: holds options and takes no value of its own. Valid under it: {', '.join(under)}."
    parent, _, name = key.rpartition(".")
    siblings = _names_under(f"{parent}." if parent else "", schema)
    near = did_you_mean(name, siblings) or did_you_mean(key, schema)
    return f"{key}: no such option. Valid {f'under {parent}' if parent else 'here'}: {', '.join(siblings)}.{near}"


def _names_under(prefix: str, schema: Schema) -> list[str]:
    return sorted({key.removeprefix(prefix).split(".")[0] for key in schema if key.startswith(prefix)})


def _fault(value: Any, rule: Rule) -> str | None:
    if isinstance(rule, Option):
        return f"needs a value ({rule.meaning})" if value == "???" else rule.fault(value)
    if isinstance(rule, Free):
        return None if value is None or isinstance(value, Mapping) else f"{value!r} is not a mapping"
    if value is None:
        return None if rule.optional else "needs a choice"
    target = value.get("_target_") if isinstance(value, Mapping) else None
    if not isinstance(target, str):
        return f"{value!r} has no _target_ ({rule.meaning})"
    if not target.startswith(rule.packages):
        return f"_target_ {target} is not allowed here. Allowed: " + ", ".join(f"{name}*" for name in rule.packages)
    return None


def _has_type(value: Any, type_: type) -> bool:
    if type_ is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if type_ is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if type_ is str:  # YAML takes dataset.version=1 for a number
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    return isinstance(value, type_)
