from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
import torch

from flatfix.data.splits import Fold
from flatfix.errors import UserError
from flatfix.training.facts import optimizer_name
from flatfix.training.plan import Plan, make_plan
from tests.helpers.compose import CONF, compose_train
from tests.helpers.fit import Losses, fit
from tests.helpers.models import make_module

TINY = ["dataset=tires", "dataset.image_size=32", "model=cnn"]


def plan(tmp_path: Path, *overrides: str) -> Plan:
    return make_plan(compose_train(tmp_path, *TINY, *overrides))


def choices(group: str) -> list[str]:
    return [f"{group}={path.stem}" for path in sorted((CONF / group).glob("[!_]*.yaml"))]


TIMM = [f"optimizer=timm optimizer.opt={name}" for name in ("lamb", "muon", "adafactorbv", "lookahead_sgd", "LION")]
RECIPES = [*choices("loss"), *choices("optimizer"), *choices("scheduler"), *TIMM]


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "optimizer=timm"])
def test_every_loss_optimizer_and_schedule_takes_steps(tmp_path: Path, recipe: str) -> None:
    made = plan(tmp_path, *recipe.split())
    torch.manual_seed(0)
    module = make_module(optimizer=made.optimizer, scheduler=made.scheduler, loss=made.loss((1, 1, 1)))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    losses = Losses()
    trainer = fit(module, losses, max_epochs=3)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
    assert median(losses.seen[-5:]) < median(losses.seen[:5])
    assert trainer.optimizers[0].param_groups[1]["weight_decay"] == 0.0
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == made.optimizer.keywords["weight_decay"]


def test_the_fold_and_the_names_of_a_recipe_are_those_of_the_config(tmp_path: Path) -> None:
    assert plan(tmp_path).fold is None
    assert plan(tmp_path, "dataset.fold=1", "dataset.num_folds=5").fold == Fold(1, 5)
    for words, name in (("optimizer=rmsprop", "RMSprop"), ("optimizer=timm optimizer.opt=lamb", "lamb")):
        assert optimizer_name(compose_train(tmp_path, *TINY, *words.split())["optimizer"]) == name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("optimizer=timm optimizer.opt=lamp", r"optimizer\.opt=lamp: .*Did you mean 'lamb'"),
        ("optimizer=timm optimizer.opt=lookahead_lamp", r"optimizer\.opt=lamp: .*Did you mean 'lamb'"),
        ("optimizer=timm", r"optimizer\.opt: needs a value"),
        ("optimizer=timm optimizer.opt=adahessian", r"optimizer\.opt=adahessian: needs second derivatives"),
        ("optimizer=timm optimizer.opt=bnbadam", r"optimizer: .*bitsandbytes"),  # it needs CUDA and its package
        ("optimizer=timm optimizer.opt=lamb +optimizer.betta=1", r"optimizer: .*betta"),
        ("optimizer=sgd optimizer.momentum=0.0", r"optimizer: Nesterov momentum requires a momentum"),
        ("scheduler=plateau +scheduler.warmup_epochs=1", r"scheduler\.warmup_epochs: no such option.*patience, gamma"),
        ("scheduler=plateau scheduler.gamma=1.0", r"scheduler\.gamma: 1\.0 is out of range"),
        ("scheduler=plateau scheduler.patience=0", r"scheduler\.patience: 0 is out of range"),
        ("+scheduler.total_steps=9", r"scheduler\.total_steps: no such option"),
        ("loss=focal +loss.alpha=0.25", r"loss\.alpha: no such option\. Valid: gamma, class_weights"),
        ("loss.class_weights=balanced", r"loss\.class_weights: 'balanced' is not auto or a list"),
        ("loss.class_weights=[1.0,-2.0]", r"loss\.class_weights=\[1\.0, -2\.0\]: each weight must be a number > 0"),
        ("dataset.sampler=balanced loss.class_weights=auto", r"loss\.class_weights=auto: dataset\.sampler=balanced"),
        ("model=efficientnet_lite0 augment=mixup", r"model\.freeze=backbone: .*mixed"),
        ("model=efficientnet_lite0 augment=cutmix model.cached_views=4", r"model\.freeze=backbone: .*mixed"),
        ("model=efficientnet_lite0 dataset.batch_size=auto", r"dataset\.batch_size=auto: .*Give a number"),
        ("model=efficientnet_lite0 trainer.compile=true", r"trainer\.compile=true: .*one linear layer"),
        ("dataset.fold=1", r"dataset\.num_folds"),
        ("registry.name=a/b", r"registry\.name=a/b: not a name for a registered model"),
    ],
)
def test_what_does_not_work_is_named_before_data_is_read(tmp_path: Path, overrides: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(tmp_path, *overrides.split())


@pytest.mark.parametrize(
    "overrides", ["loss.class_weights=[1,2,3,4]", "dataset.sampler=balanced loss.class_weights=[1.0,2.0]", "debug=fast"]
)
@pytest.mark.parametrize("scheduler", ["plateau", "onecycle"])
def test_what_works_together_is_planned(tmp_path: Path, overrides: str, scheduler: str) -> None:
    plan(tmp_path, *overrides.split(), f"scheduler={scheduler}")
