"""Write docs/options.md: every group, choice and option of every entry point, from `conf/` and the schema.

Run it in the root of the repository: `make docs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flatfix.config.groups import Entry, Group, Section, read_entry, settings
from flatfix.config.options import EVALUATE, PREDICT, PROMOTE, PUBLISH, SERVE, TRAIN
from flatfix.config.schema import Free, Rule, Schema, Target
from flatfix.config.text import as_written

PAGE = Path("docs/options.md")
ENTRIES: Mapping[str, Schema] = {
    "train": TRAIN,
    "publish": PUBLISH,
    "promote": PROMOTE,
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "serve": SERVE,
}
HEAD = """\
<!-- `make docs` writes this page from conf/ and src/flatfix/config/options.py: change those. -->

# Options

`group=choice` chooses a file of `conf/<group>/`, `option=value` sets one value: `python train.py model=cnn
optimizer.lr=0.01`. A choice in **bold** is taken where none is named. Where the choices of a group set different
defaults, or not all of them have an option, the default is told for each. `${…}` stands for another option's value,
or for what Hydra knows. `+option.name=value` adds to a mapping, such as `+model.options.drop_rate=0.2`.
"""


def page(conf: Path) -> str:
    """Return the page for the configs in the folder `conf`."""
    lines = [HEAD]
    told: dict[str, Section] = {}
    for name, schema in ENTRIES.items():
        entry = read_entry(conf, name)
        lines += [f"## {name}.py", "", entry.meaning, ""]
        sections = entry.sections(schema)
        known = [section.name for section in sections if told.get(section.name) == section]
        for section in sections:
            if section.name not in known:
                lines += _section(section, entry)
        if known:
            links = ", ".join(f"[`{each}`](#{each})" for each in known)
            lines += [f"As above: {links}.", ""]
        told |= {section.name: section for section in sections if section.name}
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section, entry: Entry) -> Iterator[str]:
    if section.name:
        yield from (f"### {section.name}", "")
    for group in section.groups:
        yield from _choices(group)
    if section.options:
        yield from ("| option | accepts | default | |", "|---|---|---|---|")
        for key, rule in section.options.items():
            default = _value(entry.values[key]) if key in entry.values else _defaults(key, rule, section.groups)
            yield _row(
                f"`{key}{'._target_' if isinstance(rule, Target) else ''}`", _accepts(rule), default, rule.meaning
            )
        yield ""


def _choices(group: Group) -> Iterator[str]:
    if len(group.choices) == 1:
        yield from (group.choices[0].meaning, "")
        return
    yield from (f"| `{group.name}=` | |", "|---|---|")
    for choice in group.choices:
        yield _row(f"**`{choice.name}`**" if choice.name == group.default else f"`{choice.name}`", choice.meaning)
    yield ""


def _accepts(rule: Rule) -> str:
    if isinstance(rule, Target):
        return ", ".join(f"`{package}*`" for package in rule.packages)
    if isinstance(rule, Free):
        return "a mapping"
    return f"null or {rule.expected()}" if rule.optional else rule.expected()


def _defaults(key: str, rule: Rule, groups: tuple[Group, ...]) -> str:
    """Return the default; where choices differ in it, each default after the choices that set it."""
    if isinstance(rule, Target):
        return "of each choice"
    main = groups[0]
    found = settings(groups, key)
    choices_of: dict[str, list[str]] = {}
    for group, choice, value in found:
        name = choice.name if group == main else f"{group.name}={choice.name}"
        choices_of.setdefault(_value(value), []).append(name)
    cells = [f"{', '.join(names)}: {value}" for value, names in choices_of.items()]
    if sum(setting.group == main for setting in found) == len(main.choices):
        first, *others = choices_of  # the first is of the default choice
        is_rest = len(others) == 1 and len(choices_of[others[0]]) > 2 and len(choices_of[first]) == 1
        cells = [first, f"others: {others[0]}"] if is_rest else [first, *cells[1:]]
    return "; ".join(cells) or "–"


def _value(value: Any) -> str:
    return "required" if value == "???" else f"`{as_written(value)}`"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(Path("conf")), encoding="utf-8")
