"""The one place where configuration becomes objects, behind an allow-list."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from flatfix.errors import UserError, did_you_mean

ALLOWED_TARGETS = [
    "flatfix.data.sources.*",
    "flatfix.training.augment.*",
    "flatfix.training.losses.*",
    "flatfix.training.schedulers.*",
    "optuna.pruners.*",
    "torch.optim.*",
    "timm.optim.*",
]
CONTROLS = ("_target_", "_partial_")
# What the run gives, never the config.
GIVEN = ("self", "params", "optimizer", "total_steps", "steps_per_epoch", "direction", "class_counts")


def build(node: Mapping[str, Any], option: str) -> Any:
    """Build what `node` describes: an object, or a callable where it says `_partial_: true`.

    Args:
        node: a mapping with `_target_` and the target's arguments.
        option: the option path, for messages.

    Raises:
        UserError: when the target is outside the allow-list, does not exist, or does not accept an argument.
    """
    _check_arguments(node, option)
    try:
        return instantiate(node, _convert_="all", _execution_whitelist_=ALLOWED_TARGETS)
    except UserError:
        raise
    except InstantiationException as error:
        raise UserError(f"{option}: {str(error).splitlines()[0]}") from error
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"{option}: {error}") from error


def _check_arguments(node: Mapping[str, Any], option: str) -> None:
    target = str(node["_target_"])
    if not any(target == allowed or target.startswith(allowed.removesuffix("*")) for allowed in ALLOWED_TARGETS):
        raise UserError(f"{option}._target_={target} is not allowed. Allowed: {', '.join(ALLOWED_TARGETS)}")
    try:
        parameters = inspect.signature(get_object(target)).parameters
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{option}._target_={target}: {str(error).splitlines()[0]}") from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    valid = [name for name in parameters if name not in GIVEN]
    for name in node:
        if name not in valid and name not in CONTROLS:
            raise UserError(f"{option}.{name}: no such option. Valid: {', '.join(valid)}.{did_you_mean(name, valid)}")
