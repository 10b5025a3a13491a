"""Try the configs of a sweep before it begins: a mistake costs a second, not a night."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write
from optuna.distributions import BaseDistribution, CategoricalDistribution

from flatfix.config.options import TRAIN
from flatfix.config.schema import validate
from flatfix.errors import UserError

MAX_CHOICES = 64  # of one parameter that are tried


def composed(context: HydraContext, config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose and validate what a job with these overrides would be given.

    Args:
        context: of the multirun.
        config: of the multirun.
        overrides: of the job.

    Raises:
        UserError: naming each option that is wrong, or wrong in a multirun.
        HydraException: for an override that does not compose.
    """
    job = context.config_loader.load_sweep_config(config, list(overrides))
    with read_write(job.hydra), open_dict(job.hydra):
        job.hydra.job.num = 0
        job.hydra.runtime.output_dir = str(Path(config.hydra.sweep.dir, "0").absolute())
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(job)
    try:
        task = job.copy()
        with read_write(task), open_dict(task):
            del task["hydra"]
        cfg = validate(task, TRAIN, overrides)
    finally:
        HydraConfig.instance().cfg = before
    if cfg["resume"]["from"] is not None and cfg["resume"]["mode"] == "continue":
        raise UserError(
            f"resume.from={cfg['resume']['from']}: the jobs of a multirun are new runs. With an optuna sweeper a "
            "multirun goes on as a whole, when it is begun again with the same sweep.name. To start every job from "
            "what one run reached, set resume.mode=finetune or branch."
        )
    return cfg


def corners(space: Mapping[str, BaseDistribution]) -> Iterator[dict[str, Any]]:
    """Yield a few points of a space that between them have every choice and both ends of every interval."""
    first = {name: next(iter(_ends(distribution))) for name, distribution in space.items()}
    yield first
    for name, distribution in space.items():
        for value in [*_ends(distribution)][1:]:
            yield {**first, name: value}


def _ends(distribution: BaseDistribution) -> Iterable[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[:MAX_CHOICES]
    return (distribution.low, distribution.high)  # type: ignore[attr-defined]
