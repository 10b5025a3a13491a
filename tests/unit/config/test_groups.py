from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from flatfix.config.groups import Group, read_entry, settings
from flatfix.config.options import EVALUATE, PREDICT, PROMOTE, PUBLISH, SERVE, TRAIN
from flatfix.config.schema import Free, Schema, Target
from tests.helpers.compose import CONF

ENTRIES: dict[str, Schema] = {
    "train": TRAIN,
    "publish": PUBLISH,
    "predict": PREDICT,
    "serve": SERVE,
    "promote": PROMOTE,
    "evaluate": EVALUATE,
}
TRAINING = read_entry(CONF, "train")
GROUPS = [pytest.param(group, id=group.name) for group in TRAINING.groups]


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "_partial_":
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("group", GROUPS)
def test_a_choice_is_read_as_hydra_composes_it(group: Group) -> None:
    folder = group.name.partition("@")[0]
    assert {choice.name for choice in group.choices} == {file.stem for file in (CONF / folder).glob("[!_]*.yaml")}
    if not group.package:
        return  # an experiment builds on all of the config, and composes only with it
    with hydra.initialize_config_dir(str(CONF)):
        for choice in group.choices:
            composed = OmegaConf.to_container(hydra.compose(f"{folder}/{choice.name}")[folder])
            assert choice.values == dict(leaves(composed, f"{group.package}."))


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_value_in_a_file_has_its_option_in_the_schema(entry: str) -> None:
    schema = ENTRIES[entry]
    read = read_entry(CONF, entry)
    found = {*read.values, *(key for group in read.groups for choice in group.choices for key in choice.values)}
    targets = {f"{key}._target_" for key, rule in schema.items() if isinstance(rule, Target)}
    free = tuple(f"{key}." for key, rule in schema.items() if isinstance(rule, Free))
    assert {key for key in found - schema.keys() - targets if not key.startswith(free or "\0")} == set()


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_option_of_the_schema_is_set_in_a_file(entry: str) -> None:
    read = read_entry(CONF, entry)
    # What augment.first takes is checked whichever way it is chosen; the files choose one of them.
    options = [key for key in ENTRIES[entry] if not key.startswith("augment.first.")]
    assert [key for key in options if key not in read.values and not settings(read.groups, key)] == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_says_on_top_of_its_file_what_it_is(group: Group) -> None:
    assert [choice.name for choice in group.choices if not choice.meaning] == []


def test_this_machines_own_settings_are_no_group() -> None:
    assert "local" not in {group.name for group in TRAINING.groups}


def test_the_default_choice_comes_first_and_a_mapping_is_what_lies_below() -> None:
    rates = {choice.name: value for _, choice, value in settings(TRAINING.groups, "optimizer.weight_decay")}
    assert next(iter(rates.items())) == ("adamw", 0.05)
    assert rates["adam"] == 0
    options = {choice.name: value for _, choice, value in settings(TRAINING.groups, "model.options")}
    assert (options["cnn"], options["wrn_28_10"]) == ({}, {"dropout": 0.0})
