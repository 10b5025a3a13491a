"""Which version is the best: the words for a metric, and the pick among versions that can be compared."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flatfix.errors import UserError, did_you_mean
from flatfix.evaluation.metrics import METRICS
from flatfix.registry.versions import Version

# By the last word of a metric's name: `top5_accuracy` is an accuracy, `calibration_error` an error.
_DIRECTIONS = {**METRICS, "error": "min"}


@dataclass(frozen=True, slots=True)
class Pick:
    """Say which version is the best, and of which.

    Attributes:
        metric: the validation metric that chose.
        ranked: the versions that were compared, the best first.
        left_out: those trained on another content of the dataset, whose metrics say nothing about these.
    """

    metric: str
    ranked: tuple[Version, ...]
    left_out: tuple[Version, ...] = ()

    @property
    def best(self) -> Version:
        """The version that was picked."""
        return self.ranked[0]

    @property
    def value(self) -> float:
        """The metric of the version that was picked."""
        return self.best.validation[self.metric]


def metric_named(word: str, logged: Iterable[str] = ()) -> str:
    """Return the metric that a word means: `F1`, `f1_score`, `Validation Loss` and `val/f1` are words for two of them.

    Args:
        word: what somebody wrote.
        logged: metrics that are known beside those of `METRICS`.

    Raises:
        UserError: for an unknown metric, one whose better direction its name does not tell, and one of the test split.
    """
    name = re.sub(r"[\s-]+", "_", word.strip().lower())
    if re.match(r"test[/_.]", name):
        raise UserError(f"metric={word}: the test split judges and never chooses. Name the validation metric.")
    name = re.sub(r"^(validation|val|best)[/_.]", "", name)
    known = [*METRICS, *sorted(metric for metric in {*logged} - METRICS.keys() if _direction(metric))]
    for spelling in (name, re.sub(r"_?score$", "", name)):
        if spelling in known:
            return spelling
    raise UserError(f"metric={word}: no such validation metric. Valid: {', '.join(known)}.{did_you_mean(name, known)}")


def pick(versions: Sequence[Version], word: str, dataset_version: str | None = None) -> Pick:
    """Pick the best of some versions by a validation metric; of equals the newest, and never one whose metric is nan.

    Only versions trained on the same content of the dataset are compared: that of the newest version among those given,
    or among those trained on `dataset_version`.

    Args:
        versions: at least one, oldest first.
        word: the metric, see `metric_named`.
        dataset_version: name of a dataset version.

    Raises:
        UserError: for a metric or a dataset version that no version has.
    """
    eligible = [each for each in versions if dataset_version in (None, each.dataset_version)]
    if not eligible:
        held = sorted({each.dataset_version for each in versions})
        raise UserError(
            f"dataset.version={dataset_version}: none of the versions was trained on it, but on {', '.join(held)}."
        )
    digest = eligible[-1].dataset_digest
    compared = [each for each in eligible if each.dataset_digest == digest]
    metric = metric_named(word, {name for each in compared for name in each.validation})
    sign = 1 if _direction(metric) == "min" else -1
    defined = [each for each in compared if not math.isnan(each.validation.get(metric, math.nan))]
    if not defined:
        raise UserError(f"metric={word}: no version has a validation {metric}. Choose by another metric.")
    ranked = sorted(reversed(defined), key=lambda each: sign * each.validation[metric])  # sorted keeps ties in order
    undefined = [each for each in compared if each not in defined]
    return Pick(metric, (*ranked, *undefined), tuple(each for each in versions if each not in compared))


def _direction(metric: str) -> str | None:
    return _DIRECTIONS.get(metric.rpartition("_")[2])
