"""The gate that a trained model must pass: bounds on its metrics, and which of them it missed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flatfix.errors import UserError, did_you_mean
from flatfix.evaluation.metrics import METRICS


@dataclass(frozen=True, slots=True)
class Bound:
    """The least or the greatest value of one metric that qualifies.

    `key` is the option under `callbacks.qualify`: `min_<metric>` or `max_<metric>`.
    """

    key: str
    limit: float

    @property
    def metric(self) -> str:
        """The metric's name, a key of `METRICS`."""
        return self.key[len("min_") :]

    def shortfall(self, value: float) -> float:
        """Return by how much `value` misses the bound: 0 or less where it reaches it, nan where it is nan."""
        return self.limit - value if self.key.startswith("min_") else value - self.limit


@dataclass(frozen=True, slots=True)
class Qualification:
    """The verdict of the gate and the reason for it, in words."""

    is_qualified: bool
    reason: str


def parse_bounds(options: Mapping[str, float | None]) -> tuple[Bound, ...]:
    """Read the bounds that `callbacks.qualify` sets.

    Args:
        options: `min_<metric>` and `max_<metric>` of any metric; None sets no bound.

    Raises:
        UserError: if a key is unknown, a metric cannot take the limit, or two bounds exclude each other.
    """
    known = [f"{kind}_{metric}" for metric in METRICS for kind in ("min", "max")]
    limits: dict[str, float] = {}
    for key, limit in options.items():
        if key not in known:
            raise UserError(
                f"callbacks.qualify.{key}: no such bound. Valid: {', '.join(known)}.{did_you_mean(key, known)}"
            )
        if limit is not None:
            limits[key] = _checked_limit(key, limit)
    for metric in METRICS:
        least, greatest = limits.get(f"min_{metric}", -math.inf), limits.get(f"max_{metric}", math.inf)
        if least > greatest:
            raise UserError(
                f"callbacks.qualify.min_{metric}={least:g}: greater than max_{metric}={greatest:g}. "
                "No model could qualify: lower the one or raise the other"
            )
    return tuple(Bound(key, limit) for key, limit in limits.items())


def qualify(metrics: Mapping[str, float], bounds: Sequence[Bound]) -> Qualification:
    """Judge metrics by bounds: qualified when there are bounds and every one is reached.

    A metric that is nan or absent misses its bounds. The reason names each bound that was missed, the value, and by how
    much; or, of a model that qualifies, each bound that was reached.
    """
    if not bounds:
        return Qualification(is_qualified=False, reason="no bound configured")
    reached, missed = [], []
    for bound in bounds:
        value = metrics.get(bound.metric, math.nan)
        shortfall = bound.shortfall(value)
        if shortfall <= 0:
            reached.append(f"{bound.metric} {value:.6g} reaches {bound.key} {bound.limit:g}")
        elif math.isnan(value):
            missed.append(f"{bound.metric} is undefined and misses {bound.key} {bound.limit:g}")
        else:
            missed.append(f"{bound.metric} {value:.6g} misses {bound.key} {bound.limit:g} by {shortfall:.2g}")
    return Qualification(is_qualified=not missed, reason="; ".join(missed or reached))


def _checked_limit(key: str, limit: object) -> float:
    greatest = math.inf if key.endswith("_loss") else 1.0
    # bool is an int to Python: min_accuracy=true must not mean 1.
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= greatest or math.isinf(limit):
        interval = "a number of nats, 0 or more" if math.isinf(greatest) else "a number in 0..1 (0.8 is 80 %)"
        raise UserError(f"callbacks.qualify.{key}={limit}: must be {interval}")
    return float(limit)
