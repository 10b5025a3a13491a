from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from flatfix.config.instantiate import build
from tests.helpers.compose import CONF, compose_train

PRUNERS = {
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "none": optuna.pruners.NopPruner,
}


def test_every_pruner_of_the_config_is_here() -> None:
    assert {file.stem for file in (CONF / "pruner").glob("*.yaml")} == PRUNERS.keys()


@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_of_the_config_is_that_of_optuna(tmp_path: Path, name: str) -> None:
    assert type(build(compose_train(tmp_path, f"pruner={name}")["pruner"], "pruner")) is PRUNERS[name]
