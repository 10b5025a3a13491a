"""Build everything that the config names and that needs no data, so that a mistake costs seconds, not hours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.optim
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flatfix.config.instantiate import build
from flatfix.config.resolvers import directions
from flatfix.data.sources.base import Source
from flatfix.data.splits import Fold, SplitRule
from flatfix.errors import UserError, one_of
from flatfix.evaluation import threshold
from flatfix.evaluation.metrics import METRICS
from flatfix.evaluation.qualification import Bound, parse_bounds
from flatfix.models.classifier import check_start, create_backbone, num_features
from flatfix.registry.register import check_name
from flatfix.training import precision
from flatfix.training.augment import Augment, Mixer
from flatfix.training.losses import Loss
from flatfix.training.module import parameter_groups
from flatfix.training.speed import check_compiler, fused


@dataclass(frozen=True)
class Plan:
    """Hold what a run is made of, before any picture or weight is read."""

    source: Source | None
    rule: SplitRule
    fold: Fold | None
    augment: Augment
    loss: Callable[..., Loss]
    optimizer: Callable[..., Optimizer]
    scheduler: Callable[..., LRScheduler]
    bounds: tuple[Bound, ...]
    stop_when_qualified: bool


def make_plan(cfg: Mapping[str, Any]) -> Plan:
    """Build the parts of a run from a validated config, and try each of them once on something tiny.

    Raises:
        UserError: naming the option that does not work, alone or together with another.
    """
    dataset, model, qualification = cfg["dataset"], cfg["model"], dict(cfg["callbacks"]["qualify"])
    stop_when_qualified = qualification.pop("stop_when_qualified")
    plan = Plan(
        source=build(dataset["source"], "dataset.source") if dataset["source"] else None,
        rule=SplitRule(**dataset["split"]),
        fold=Fold.chosen(dataset["fold"], dataset["num_folds"]),
        augment=build(cfg["augment"], "augment"),
        loss=build(cfg["loss"], "loss"),
        optimizer=fused(build(cfg["optimizer"], "optimizer"), clips=cfg["trainer"]["gradient_clip"] is not None),
        scheduler=build(cfg["scheduler"], "scheduler"),
        bounds=parse_bounds(qualification),
        stop_when_qualified=stop_when_qualified,
    )
    directions(cfg["sweep"]["objectives"])
    _check_model(cfg["model"], plan.augment, starts_anew=cfg["resume"]["from"] in (None, "auto"))
    _check_recipe(cfg, plan)
    threshold.check(cfg["decision"])
    weights = Path(model["weights"]) if model["weights"] else None
    check_start(model["name"], model["pretrained"], weights, model["normalise"])
    precision.choose(cfg["trainer"]["precision"], cfg["trainer"]["accelerator"])
    if cfg["registry"]["name"] is not None:
        check_name(cfg["registry"]["name"])
    _try_steps(plan, cfg)
    _try_backbone(model["name"], model["options"], dataset["image_size"])
    if cfg["trainer"]["compile"]:
        check_compiler(cfg["trainer"]["accelerator"])
    return plan


def _check_model(model: Mapping[str, Any], augment: Augment, *, starts_anew: bool) -> None:
    """Refuse what a frozen backbone, which sees each picture once, would ignore."""
    is_frozen = model["freeze"] == "backbone"
    if is_frozen and isinstance(augment, Mixer):
        raise UserError(
            "model.freeze=backbone: the features of each picture are computed once, so pictures cannot be mixed anew "
            "in every epoch. Use an augment that does not mix, with model.cached_views=8, or model.freeze=none."
        )
    if is_frozen and augment.changes_pictures and not model["cached_views"]:
        raise UserError(
            "model.freeze=backbone: the features of each picture are computed once, so augmentation would not reach "
            "them. Use augment=none, or model.cached_views=8 to cache eight augmented views of each picture, or "
            "model.freeze=none."
        )
    if model["cached_views"] and not is_frozen:
        raise UserError(
            "model.cached_views: only a frozen backbone caches views. Set model.freeze=backbone or drop it."
        )
    if model["cached_views"] and not augment.changes_pictures:
        raise UserError(
            "model.cached_views: augment=none makes all views alike. Choose another augment, or set it to 0."
        )
    if is_frozen and starts_anew and not (model["pretrained"] or model["weights"]):
        raise UserError(
            "model.freeze=backbone: the backbone would stay random. Give model.weights or model.pretrained=true."
        )


def _check_recipe(cfg: Mapping[str, Any], plan: Plan) -> None:
    """Refuse options that contradict one another, or that have no effect together."""
    if cfg["callbacks"]["qualify"]["stop_when_qualified"] and not plan.bounds:
        raise UserError("callbacks.qualify.stop_when_qualified=true: no bound is set. Set one, such as min_accuracy.")
    warmup_epochs = cfg["scheduler"].get("warmup_epochs", 0.0)
    if warmup_epochs > cfg["trainer"]["max_epochs"]:
        raise UserError(
            f"scheduler.warmup_epochs={warmup_epochs}: longer than the run "
            f"(trainer.max_epochs={cfg['trainer']['max_epochs']}), so the learning rate would never be reached"
        )
    if cfg["callbacks"]["early_stopping"]["delta"] and cfg["callbacks"]["early_stopping"]["patience"] is None:
        raise UserError("callbacks.early_stopping.delta has no effect without callbacks.early_stopping.patience")
    if cfg["model"]["freeze"] == "backbone" and cfg["dataset"]["batch_size"] == "auto":
        raise UserError(
            "dataset.batch_size=auto: with model.freeze=backbone a batch holds features, which take next to no memory. "
            "Give a number."
        )
    if cfg["model"]["freeze"] == "backbone" and cfg["trainer"]["compile"]:
        raise UserError(
            "trainer.compile=true: with model.freeze=backbone only one linear layer trains. Set it to false."
        )
    if cfg["dataset"]["sampler"] == "balanced" and cfg["loss"].get("class_weights") == "auto":
        raise UserError(
            "loss.class_weights=auto: dataset.sampler=balanced shows every class equally often already, so that rare "
            "classes would count twice. Use one of the two."
        )


def _try_steps(plan: Plan, cfg: Mapping[str, Any]) -> None:
    """Make the loss, the optimizer and the schedule for a tiny model, so that they refuse their options now."""
    weights, timm_name = cfg["loss"].get("class_weights"), cfg["optimizer"].get("opt")
    with _naming("loss"):
        plan.loss((1,) * (len(weights) if isinstance(weights, list) else 2))
    if timm_name:
        names = map(str, timm.optim.list_optimizers())  # type: ignore[attr-defined]
        one_of("optimizer.opt", timm_name.lower().removeprefix("lookahead_"), names)  # timm wraps any of them
    groups = parameter_groups(nn.Linear(1, 1).named_parameters(), cfg["trainer"]["decay_norms_and_biases"])
    with _naming("optimizer"):
        optimizer = plan.optimizer(groups)
    if getattr(optimizer, "is_second_order", False):
        raise UserError(f"optimizer.opt={timm_name}: needs second derivatives, which training does not compute.")
    with _naming("scheduler"):
        plan.scheduler(optimizer, total_steps=1, steps_per_epoch=1, direction=METRICS[cfg["monitor"]])


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Say which option was refused, in the words of the library that refuses it."""
    try:
        yield
    except UserError:
        raise
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{option}: {error}") from error


def _try_backbone(name: str, options: Mapping[str, Any], image_size: int) -> None:
    """Pass a picture without content through the backbone without weights: this costs no memory and no arithmetic."""
    with torch.device("meta"):
        backbone = create_backbone(name, options).eval()
        try:
            features = backbone(torch.empty(1, 3, image_size, image_size))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"dataset.image_size={image_size}: {name} does not take it ({reason})") from error
    if features.shape != (1, num_features(backbone)):
        raise UserError(
            f"model.name={name}: gives features of shape {tuple(features.shape)}; a classifier needs [N, D]"
        )
