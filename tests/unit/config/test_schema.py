from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flatfix.config.options import TRAIN
from flatfix.config.schema import Free, Option, Target, validate
from flatfix.errors import UserError
from flatfix.training.facts import flattened
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


def test_all_faults_are_reported_at_once() -> None:
    cfg = OmegaConf.create(GOOD)
    cfg.seed, cfg.trainer.epochs = -1, 0
    with pytest.raises(UserError, match=r"seed: .*\n.*trainer\.epochs: "):
        validate(cfg, SCHEMA)


@pytest.mark.parametrize("group", sorted(path.name for path in CONF.iterdir() if path.is_dir()))
def test_every_choice_of_every_group_composes(group: str, tmp_path: Path) -> None:
    for file in sorted((CONF / group).glob("[!_]*.yaml")):
        if group in ("qualify", "local"):
            continue
        needed = ["dataset.source.root=/pictures"] if file.stem in ("folder", "cifar10") else []
        needed += ["dataset.name=mine"] if file.stem in ("folder", "published") else []
        needed += ["dataset.version=v1"] if file.stem == "published" else []
        compose_train(tmp_path, f"{group}={file.stem}", *needed)


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


def test_every_option_of_the_schema_is_set_by_some_config(tmp_path: Path) -> None:
    folder = ["dataset=folder", "dataset.name=mine", "dataset.source.root=/pictures"]
    words = [["dataset=tires"], folder, ["optimizer=sgd"], ["scheduler=step"]]
    set_by_some: set[str] = set()
    for each in words:
        set_by_some |= dict(flattened(compose_train(tmp_path, *each))).keys()
    targets = {key for key, rule in TRAIN.items() if isinstance(rule, Target | Free)}
    assert TRAIN.keys() - targets - set_by_some == set()


def test_the_experiment_of_make_train_is_the_default(tmp_path: Path) -> None:
    assert compose_train(tmp_path, "experiment=elpv") == compose_train(tmp_path)
