"""The gates in front of production: what a version must pass to go live, each with the numbers that decided."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from flatfix.errors import UserError
from flatfix.evaluation.calibration import expected_calibration_error
from flatfix.evaluation.comparison import Comparison, class_drops, compare
from flatfix.evaluation.metrics import METRICS, compute
from flatfix.inference.package import DamagedPackageError, Package
from flatfix.inference.predictor import Predictor
from flatfix.inference.runtime import UnloadableModelError
from flatfix.registry.exam import Exam, Place, UnfitError, sit
from flatfix.registry.journal import GateResult
from flatfix.registry.packages import fetch_package
from flatfix.registry.versions import Version
from flatfix.tracking.connection import connect

Options = Mapping[str, Any]
Verdict = tuple[bool | None, str]  # whether the gate is passed, and the numbers

OFF = "off"  # what is said of a gate that is
NEED_EVALUATION = ("not_worse", "better", "max_class_drop", "max_calibration_error")
NUM_WARM_UP, NUM_TIMED = 5, 30  # pictures, one at a time


def check_gates(options: Options, metric: str) -> None:
    """Refuse gates that cannot judge.

    Args:
        options: those of the config group `gates`.
        metric: what paired tests compare by.

    Raises:
        UserError: naming the option.
    """
    needing = [f"gates.{name}" for name in NEED_EVALUATION if _is_on(options[name])]
    if needing and not options["offline_evaluation"]:
        raise UserError(
            f"gates.offline_evaluation=false: {', '.join(needing)} cannot judge without. Turn them off too."
        )
    if (options["not_worse"] or options["better"]) and metric not in METRICS:
        raise UserError(
            f"metric={metric}: the paired tests of gates.not_worse and gates.better know {', '.join(METRICS)}. "
            "Choose one of these, or turn both gates off."
        )


def run_gates(
    options: Options, metric: str, challenger: Version, incumbent: Version | None, place: Place
) -> list[GateResult]:
    """Put a version to every gate, in the order of the options; all are run, whatever the first ones say.

    A gate that is off, or has nothing to compare with, neither passes nor fails; but nothing is better than a live
    version with which it cannot be compared.

    Args:
        options: those of the config group `gates`.
        metric: what paired tests compare by.
        challenger: the version that is to go live.
        incumbent: the version that is live, if there is one.
        place: where everything is.

    Raises:
        UserError: where a gate cannot be run: the store does not hold the dataset, or MLflow does not hold a package.
    """
    trial = _Trial(options, metric, challenger, incumbent, place)
    gates: dict[str, Callable[[], Verdict]] = {
        "offline_evaluation": trial.offline_evaluation,
        "not_worse": trial.not_worse,
        "better": trial.better,
        "max_class_drop": trial.class_drop,
        "max_calibration_error": trial.calibration_error,
        "max_package_megabytes": trial.package_size,
        "max_latency_ms": trial.latency,
        "self_test": trial.self_test,
    }
    return [_run(name, gate) if _is_on(options[name]) else GateResult(name, None, OFF) for name, gate in gates.items()]


def _run(name: str, gate: Callable[[], Verdict]) -> GateResult:
    try:
        return GateResult(name, *gate())
    except _NothingToCompareError as error:
        return GateResult(name, None, str(error))
    except (UnfitError, DamagedPackageError, UnloadableModelError) as error:
        return GateResult(name, False, str(error))


def _is_on(option: Any) -> bool:
    return option is not None and option is not False


class _NothingToCompareError(Exception):
    """Tell why a version cannot be compared with the one that is live."""


class _Trial:
    """Judge one version; what several gates need is made by the first that asks."""

    def __init__(
        self, options: Options, metric: str, challenger: Version, incumbent: Version | None, place: Place
    ) -> None:
        self._options = options
        self._metric = metric
        self._challenger = challenger
        self._incumbent = incumbent
        self._place = place

    def offline_evaluation(self) -> Verdict:
        (answers,) = self._alone.answers
        metrics = compute(answers.labels, answers.calibrated, answers.decision.positive, answers.predictions)
        names = [name for name in dict.fromkeys((self._metric, "accuracy")) if name in metrics]
        return True, f"{', '.join(f'{name} {metrics[name]:.4f}' for name in names)} on {self._alone.pictures}"

    def not_worse(self) -> Verdict:
        return not self._comparison.is_worse, self._described

    def better(self) -> Verdict:
        try:
            return self._comparison.is_better, self._described
        except _NothingToCompareError as error:
            if self._incumbent is None:
                raise
            return False, str(error)

    def class_drop(self) -> Verdict:
        worst, bound = class_drops(*self._together.answers)[0], self._options["max_class_drop"]
        if worst.drop <= 0:
            return True, f"no class loses recall, {_at_most(bound)}"
        recalls = f"{worst.incumbent:.4f} -> {worst.challenger:.4f} on {worst.num:,} pictures"
        return _is_within(
            worst.drop, bound
        ), f"class {worst.name} loses {worst.drop:.4f}, {_at_most(bound)} ({recalls})"

    def calibration_error(self) -> Verdict:
        (answers,), bound = self._alone.answers, self._options["max_calibration_error"]
        error = expected_calibration_error(answers.labels, answers.calibrated, answers.decision.positive)
        return _is_within(error, bound), f"{error:.4f}, {_at_most(bound)}"

    def package_size(self) -> Verdict:
        megabytes, bound = self._package.num_bytes / 1e6, self._options["max_package_megabytes"]
        return _is_within(megabytes, bound), f"{megabytes:.1f}, {_at_most(bound)}"

    def latency(self) -> Verdict:
        image, bound = self._package.reference().images[:1], self._options["max_latency_ms"]
        times_ms = []
        for _ in range(NUM_WARM_UP + NUM_TIMED):
            start = time.perf_counter()
            self._predictor.predict(image)
            times_ms.append(1000 * (time.perf_counter() - start))
        median_ms = statistics.median(times_ms[NUM_WARM_UP:])
        return _is_within(median_ms, bound), f"{median_ms:.2f}, {_at_most(bound)} ({self._runtime})"

    def self_test(self) -> Verdict:
        self._predictor.prove()
        return (
            True,
            f"{len(self._package.reference().images)} reference pictures answered as recorded ({self._runtime})",
        )

    @cached_property
    def _package(self) -> Package:
        return fetch_package(connect(self._place.uri), self._challenger, self._place.cache_dir)

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self._package, cache_dir=self._place.cache_dir)

    @property
    def _runtime(self) -> str:
        return f"{self._predictor.runtime} {self._predictor.precision}"

    @cached_property
    def _alone(self) -> Exam:
        return sit([self._challenger], self._place)

    @cached_property
    def _together(self) -> Exam:
        if self._incumbent is None:
            raise _NothingToCompareError("no version is live yet")
        try:
            return sit([self._challenger, self._incumbent], self._place)
        except UnfitError as error:
            raise _NothingToCompareError(str(error)) from error

    @cached_property
    def _comparison(self) -> Comparison:
        found = compare(self._metric, *self._together.answers, alpha=self._options["alpha"])
        if math.isnan(found.difference):
            raise _NothingToCompareError(found.describe())
        return found

    @property
    def _described(self) -> str:
        return "; ".join((self._comparison.describe(), *self._together.notes))


def _is_within(value: float, bound: float) -> bool:
    return value <= bound + 1e-12  # 0.9 - 0.8 is above 0.1


def _at_most(bound: float) -> str:
    return f"at most {bound:g}"
