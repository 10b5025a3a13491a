from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import MedianPruner, NopPruner

from flatfix.errors import UserError
from flatfix.sweeps.storage import open_storage
from flatfix.sweeps.studies import open_study

LR = FloatDistribution(1e-4, 1e-1, log=True)
MODEL = CategoricalDistribution(["cnn", "resnet18"])


def opened(folder: Path, space: dict[str, BaseDistribution], *directions: str) -> tuple[optuna.Study, bool]:
    storage = open_storage(f"sqlite:///{folder}/new/sweeps.db", 30)
    return open_study(
        "tires",
        storage,
        sampler=None,
        pruner=MedianPruner(),
        directions=directions or ["maximize"],
        space=space,  # type: ignore[arg-type]
    )


def test_a_study_is_begun_once_and_gone_on_with_in_a_space_whose_intervals_moved(tmp_path: Path) -> None:
    study, is_new = opened(tmp_path, {"lr": LR})
    study.ask({"lr": LR})
    again, is_new_again = opened(tmp_path, {"lr": FloatDistribution(1e-3, 1, log=True), "model": MODEL})
    assert (is_new, is_new_again) == (True, False)
    assert len(again.trials) == 1


def test_a_sampler_that_goes_on_does_not_begin_anew_with_the_trials_of_its_seed(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/sweeps.db", 30)
    drawn = []
    for _ in range(2):
        sampler = optuna.samplers.RandomSampler(seed=0)
        study, _ = open_study(
            "tires", storage, sampler=sampler, pruner=NopPruner(), directions=["maximize"], space={"lr": LR}
        )
        drawn.append(study.ask({"lr": LR}).params["lr"])
    assert drawn[0] != drawn[1]


def test_another_objective_or_another_space_needs_another_name(tmp_path: Path) -> None:
    study, _ = opened(tmp_path, {"lr": LR, "model": MODEL})
    study.ask({"lr": LR, "model": MODEL})
    with pytest.raises(UserError, match=r"sweep\.name=tires: that study is to maximize, not to minimize"):
        opened(tmp_path, {}, "minimize")
    with pytest.raises(UserError, match=r"looks for model in choice\(cnn, resnet18\), not in choice\(cnn\)"):
        opened(tmp_path, {"model": CategoricalDistribution(["cnn"])})
    with pytest.raises(UserError, match=r"sweep\.name=tires: that study looks for lr in 0\.0001 to 0\.1"):
        opened(tmp_path, {"lr": FloatDistribution(1e-4, 1e-1)})


def test_of_two_objectives_nothing_is_pruned(tmp_path: Path) -> None:
    assert isinstance(opened(tmp_path, {}, "maximize", "minimize")[0].pruner, NopPruner)
    assert isinstance(opened(tmp_path / "other", {})[0].pruner, MedianPruner)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("sqlite://", "no database file"),
        ("sweeps.db", "not the address of a database"),
        ("mysqll://host/sweeps", "not the address of a database"),
        ("postgresql+psycopg2://flatfix:secret@127.0.0.1:1/sweeps", "cannot be used"),
        ("sqlite:////proc/sweeps.db", "cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named_without_its_password(url: str, fault: str) -> None:
    with pytest.raises(UserError, match=r"sweep\.storage=") as error:
        open_storage(url, 30)
    assert fault in str(error.value)
    assert "secret" not in str(error.value)
