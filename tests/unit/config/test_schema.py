from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flatfix.config.groups import Group, read_entry
from flatfix.config.schema import Free, Option, Target, validate
from flatfix.errors import UserError
from tests.helpers.compose import CONF, compose_train

SCHEMA = {
    "seed": Option(int, "a seed", low=0),
    "trainer.epochs": Option(int, "epochs", low=1, high=100),
    "trainer.clip": Option(float, "norm", above=0, optional=True),
    "trainer.rule": Option(str, "rule", choices=("squash", "crop")),
    "optimizer": Target(("torch.optim.",), "steps"),
    "optimizer.lr": Option(float, "rate", above=0),
    "tags": Free("tags"),
}
GOOD = {
    "seed": 1,
    "trainer": {"epochs": 3, "clip": None, "rule": "crop"},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "nesterov": True},
    "tags": {"anything": {"goes": 1}},
}


def changed(key: str, value: object) -> dict[str, object]:
    cfg = OmegaConf.create(GOOD)
    OmegaConf.update(cfg, key, value, force_add=True)
    return validate(cfg, SCHEMA)


def test_a_good_config_comes_back_as_plain_values() -> None:
    values = validate(OmegaConf.create(GOOD), SCHEMA)
    assert values == GOOD
    assert type(values["trainer"]) is dict


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.epochs", 0, r"trainer\.epochs: 0 is out of range: expected a whole number >= 1 and <= 100"),
        ("trainer.epochs", 1.5, r"trainer\.epochs: 1\.5 is not a whole number"),
        ("trainer.epochs", True, r"trainer\.epochs: True is not a whole number"),
        ("trainer.clip", 0, r"trainer\.clip: 0 is out of range: expected a number > 0"),
        ("trainer.clip", float("nan"), r"trainer\.clip: nan is out of range"),
        (
            "trainer.rule",
            "corp",
            r"trainer\.rule: 'corp' is not a valid choice\. Valid: squash, crop\. Did you mean 'crop'",
        ),
        ("seed", None, r"seed: needs a value"),
        ("seed", "???", r"seed: needs a value \(a seed\)"),
        ("trainer.epoch", 3, r"trainer\.epoch: no such option\. Valid under trainer: .*Did you mean 'epochs'"),
        ("trainr.epochs", 3, r"trainr\.epochs: no such option.*Did you mean 'trainer\.epochs'"),
        ("optimizer.lr", -1, r"optimizer\.lr: -1 is out of range: expected a number > 0"),
        (
            "optimizer._target_",
            "os.system",
            r"optimizer: _target_ os\.system is not allowed here\. Allowed: torch\.optim",
        ),
        ("optimizer", None, r"optimizer: needs a choice"),
        ("trainer.clip", "${nowhere}", r"trainer\.clip: .*nowhere"),
    ],
)
def test_each_fault_is_named_with_what_would_be_valid(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        changed(key, value)


def test_a_text_that_yaml_takes_for_a_number_stays_a_text(tmp_path: Path) -> None:
    cfg = compose_train(tmp_path, "dataset.version=2024_01_15", "dataset.name=1.0", "trainer.precision=32")
    assert (cfg["dataset"]["version"], cfg["dataset"]["name"]) == ("2024_01_15", "1.0")
    assert cfg["trainer"]["precision"] == "32"


def test_null_in_place_of_a_set_of_options_is_one_fault_that_lists_them() -> None:
    with pytest.raises(UserError) as caught:
        changed("trainer", None)
    assert (
        str(caught.value) == "trainer: holds options and takes no value of its own. Valid under it: clip, epochs, rule."
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["augment.first.padding=-1"], r"augment\.first\.padding: -1 is out of range"),
        (["augment.first=trivial"], r"augment\.first: 'trivial' has no _target_ .*augment@augment\.first=trivial"),
        (["augment.first._target_=os.system"], r"augment\.first: _target_ os\.system is not allowed here"),
    ],
)
def test_a_target_within_a_target_is_checked_like_any_other(words: list[str], message: str, tmp_path: Path) -> None:
    compose_train(tmp_path, "augment=mixup", "augment@augment.first=inspection", "augment.first.brightness=0.5")
    with pytest.raises(UserError, match=message):
        compose_train(tmp_path, "augment=mixup", *words)


def test_all_faults_are_reported_at_once() -> None:
    cfg = OmegaConf.create(GOOD)
    cfg.seed, cfg.trainer.epochs = -1, 0
    with pytest.raises(UserError, match=r"seed: .*\n.*trainer\.epochs: "):
        validate(cfg, SCHEMA)


@pytest.mark.parametrize("group", [pytest.param(group, id=group.name) for group in read_entry(CONF, "train").groups])
def test_every_choice_of_every_group_composes(group: Group, tmp_path: Path) -> None:
    for choice in group.choices:
        needed = [f"{key}=needed" for key, value in choice.values.items() if value == "???"]
        compose_train(tmp_path, f"{group.name}={choice.name}", *needed)


def test_a_demonstration_dataset_brings_its_bound_and_another_does_not(tmp_path: Path) -> None:
    bounds = [
        compose_train(tmp_path, *words)["callbacks"]["qualify"]["min_accuracy"]
        for words in (
            ["dataset=elpv"],
            ["dataset=tires"],
            ["dataset=folder", "dataset.name=mine", "dataset.source.root=/x"],
            ["dataset=tires", "callbacks.qualify.min_accuracy=0.5"],
        )
    ]
    assert bounds == [0.80, 0.90, None, 0.5]
