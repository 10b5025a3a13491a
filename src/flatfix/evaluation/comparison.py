"""Whether one model is better than another, judged on the same pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from flatfix.errors import one_of
from flatfix.evaluation.answers import Answers
from flatfix.evaluation.intervals import Resampled, per_class, resamples
from flatfix.evaluation.metrics import METRICS
from flatfix.evaluation.wording import counted

MCNEMAR = "exact McNemar test"
BOOTSTRAP = "paired bootstrap"

# Differences below this are noise of the arithmetic: they count as none.
_DIGITS = 12

_Judged = tuple[tuple[float, float], float, float]  # interval, p_worse, p_better


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the same pictures say of two models.

    Attributes:
        metric: a key of `METRICS`.
        challenger: its value of the metric.
        incumbent: likewise.
        difference: by how much the challenger is better, whatever the direction of the metric; negative if it is worse.
        interval: of `difference`, at level 1 - 2 `alpha`. It leaves out 0 only where one model is significantly better.
        p_worse: how likely pictures are on which the challenger looks this much worse or more, if it is not.
        p_better: likewise the other way round.
        test: what gave `p_worse` and `p_better`.
        num_pictures: pictures that both answered.
        num_discordant: those of them that one model decided rightly and the other one wrongly.
        alpha: level of significance.
    """

    metric: str
    challenger: float
    incumbent: float
    difference: float
    interval: tuple[float, float]
    p_worse: float
    p_better: float
    test: str
    num_pictures: int
    num_discordant: int
    alpha: float

    @property
    def is_worse(self) -> bool:
        """Whether the challenger is significantly worse."""
        return self.p_worse < self.alpha

    @property
    def is_better(self) -> bool:
        """Whether the challenger is significantly better."""
        return self.p_better < self.alpha

    def describe(self) -> str:
        """Return one line with all the numbers."""
        if math.isnan(self.difference):
            return f"{self.metric} is undefined on {counted(self.num_pictures, 'picture')}"
        if self.difference == 0:
            verdict, p = "no difference", 1.0
        else:
            word, p = ("worse", self.p_worse) if self.difference < 0 else ("better", self.p_better)
            strength = "significantly" if p < self.alpha else "not significantly"
            verdict = f"{strength} {word}, by {abs(self.difference):.4f}"
        low, high = self.interval
        return (
            f"{self.metric} {self.challenger:.4f} against {self.incumbent:.4f}: {verdict} "
            f"({100 - 200 * self.alpha:g} % interval {low:+.4f} to {high:+.4f}, p = {p:.2g}, {self.test}, "
            f"{counted(self.num_pictures, 'picture')}, {self.num_discordant:,} of them right with one model only)"
        )


@dataclass(frozen=True, slots=True)
class ClassDrop:
    """The recall that two models reach on one class.

    Attributes:
        name: the class.
        num: pictures of the class.
        challenger: its recall.
        incumbent: likewise.
    """

    name: str
    num: int
    challenger: float
    incumbent: float

    @property
    def drop(self) -> float:
        """Recall that the challenger loses; negative where it gains."""
        return self.incumbent - self.challenger


def compare(
    metric: str,
    challenger: Answers,
    incumbent: Answers,
    *,
    alpha: float = 0.05,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two models by one metric on the same pictures.

    What both say of the same pictures differs less by chance than what each says of pictures of its own, so the
    differences themselves are judged. Accuracy: McNemar's exact test (1947, doi:10.1007/BF02295996), which asks whether
    the pictures that only one of the two decides rightly fall evenly on both, and the interval of Bonett and Price
    (2012, doi:10.3102/1076998611411915). Every other metric: the percentile bootstrap of the difference (Efron and
    Tibshirani 1993, chapter 16), both models being measured on the same resamples, and by `metrics.compute`'s
    definitions.

    Both tests are one-sided and take pictures for drawn one by one: several of one tire tell less than they claim. Of
    equal models the exact test finds fewer than `alpha` worse, and the bootstrap about `alpha`; of the loss, whose
    differences are skewed, up to 1.4 times as many where there are only some dozens of pictures.

    Args:
        metric: a key of `METRICS`.
        challenger: answers to some pictures.
        incumbent: answers to the same pictures, in the same order.
        alpha: level of significance of each of the two one-sided tests.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: if the metric is unknown.
        ValueError: if there are no pictures, the two did not answer the same question, or the resamples are too few for
            `alpha`.
    """
    one_of("metric", metric, METRICS)
    _check(challenger, incumbent)
    num_pictures = len(challenger.ids)
    models = [
        Resampled(each.labels, each.calibrated, each.decision.positive, each.predictions, [metric])
        for each in (challenger, incumbent)
    ]
    values = [model.metrics(np.ones((num_pictures, 1)))[metric] for model in models]
    num_won = int(np.count_nonzero(challenger.is_right & ~incumbent.is_right))
    num_lost = int(np.count_nonzero(incumbent.is_right & ~challenger.is_right))
    if metric == "accuracy":
        test, judged = MCNEMAR, _mcnemar(num_won, num_lost, num_pictures, alpha)
    else:
        drawn = resamples(num_pictures, num_resamples, seed)
        gains = [_gain(metric, *(model.metrics(weights)[metric] for model in models)) for weights in drawn]
        test, judged = BOOTSTRAP, _percentile(np.concatenate(gains), alpha)
    interval, p_worse, p_better = judged
    return Comparison(
        metric=metric,
        challenger=float(values[0][0]),
        incumbent=float(values[1][0]),
        difference=float(_gain(metric, *values)[0]),
        interval=interval,
        p_worse=p_worse,
        p_better=p_better,
        test=test,
        num_pictures=num_pictures,
        num_discordant=num_won + num_lost,
        alpha=alpha,
    )


def class_drops(challenger: Answers, incumbent: Answers) -> list[ClassDrop]:
    """Return the recall of both models on each class that has pictures, the largest drop first.

    Raises:
        ValueError: as `compare`.
    """
    _check(challenger, incumbent)
    pairs = zip(
        *(per_class(each.labels, each.predictions, each.classes) for each in (challenger, incumbent)), strict=True
    )
    drops = [ClassDrop(new.name, new.num, new.recall, old.recall) for new, old in pairs if new.num]
    return sorted(drops, key=lambda drop: -drop.drop)


def _check(challenger: Answers, incumbent: Answers) -> None:
    """Refuse answers to different questions, or to none."""
    if not challenger.ids:
        raise ValueError("need at least one picture that both models answered")
    if challenger.ids != incumbent.ids or not np.array_equal(challenger.labels, incumbent.labels):
        raise ValueError("need two models' answers to the same pictures, in the same order and with the same labels")
    if challenger.classes != incumbent.classes or challenger.decision.positive != incumbent.decision.positive:
        raise ValueError("need the same classes in the same order, and the same positive class, of both models")


def _gain(metric: str, challenger: NDArray[np.float64], incumbent: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much the challenger is better; what is only noise of the arithmetic is 0."""
    sign = -1 if METRICS[metric] == "min" else 1
    gain: NDArray[np.float64] = np.round(sign * (challenger - incumbent), _DIGITS) + 0.0  # never -0
    return gain


def _mcnemar(num_won: int, num_lost: int, num_pictures: int, alpha: float) -> _Judged:
    num_discordant = num_won + num_lost
    p_worse, p_better = (float(bdtr(num, num_discordant, 0.5)) for num in (num_won, num_lost))
    # Bonett and Price: Wald's interval after one more picture on either side.
    centre = (num_won - num_lost) / (num_pictures + 2)
    error = math.sqrt(((num_discordant + 2) / (num_pictures + 2) - centre**2) / (num_pictures + 2))
    low, high = (centre + side * NormalDist().inv_cdf(1 - alpha) * error for side in (-1, 1))
    # It is a little less cautious than the exact test, which it must not contradict.
    low = max(low if p_better < alpha else min(low, 0.0), -1.0)
    high = min(high if p_worse < alpha else max(high, 0.0), 1.0)
    return (low, high), p_worse, p_better


def _percentile(gains: NDArray[np.float64], alpha: float) -> _Judged:
    """Judge by the gain on each resample, nan where the metric is undefined on it.

    A p-value is the part of the resamples that do not agree, the pictures themselves being counted as one more.
    """
    ordered = np.sort(gains[~np.isnan(gains)])
    num = len(ordered)
    if num == 0:
        return (math.nan, math.nan), 1.0, 1.0
    # Counted from either end, the first resample that may not cross 0 if that side is to be significant.
    rank = int(np.count_nonzero(np.arange(1, num + 2) / (num + 1) < alpha))
    if rank == 0:
        raise ValueError(f"need more than {1 / alpha:.0f} resamples for alpha={alpha:g}, got {num}")
    p_worse, p_better = ((1 + int(np.count_nonzero(side))) / (num + 1) for side in (ordered >= 0, ordered <= 0))
    return (float(ordered[rank - 1]), float(ordered[-rank])), p_worse, p_better
