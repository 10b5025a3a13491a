"""The table of a plain multirun: each combination with the mean and the deviation over its seeds."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flatfix.evaluation.metrics import METRICS
from flatfix.files import replacing
from flatfix.sweeps.summary import figure
from flatfix.training.result import RunResult

SEED = "seed="


@dataclass(frozen=True)
class Spread:
    """The values of one measure over some runs.

    Attributes:
        mean: of the values.
        deviation: their sample deviation (n - 1), None for a single value.
    """

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return that of some values, at least one."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return figure(self.mean) + ("" if self.deviation is None else f" ± {figure(self.deviation)}")


@dataclass(frozen=True)
class Combination:
    """The runs that differ by their seed alone.

    Attributes:
        overrides: what they have in common and others have not.
        num_runs: how many have finished.
        validation: measure → its spread, of the checkpoints that count.
        test: the same on test.
    """

    overrides: str
    num_runs: int
    validation: dict[str, Spread]
    test: dict[str, Spread]


def combinations(jobs: Sequence[tuple[Sequence[str], RunResult]]) -> list[Combination]:
    """Put together the finished jobs that differ by `seed=` alone, in the order in which they were given.

    Args:
        jobs: overrides and result of each job that finished.
    """
    groups: dict[str, list[RunResult]] = {}
    for words, (_, result) in zip(differences([overrides for overrides, _ in jobs]), jobs, strict=True):
        groups.setdefault(" ".join(word for word in words if not word.startswith(SEED)), []).append(result)
    return [
        Combination(
            overrides=name,
            num_runs=len(results),
            validation={metric: Spread.of([each.validation[metric] for each in results]) for metric in METRICS},
            test={metric: Spread.of([each.test[metric] for each in results]) for metric in METRICS},
        )
        for name, results in groups.items()
    ]


def differences(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return of the overrides of each job those that not all jobs have; of a single job all."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [[word for word in overrides if word not in shared] for overrides in jobs]


def write_csv(table: Sequence[Combination], path: Path) -> None:
    """Write a row for each combination: for each metric of validation and test its mean and its deviation."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        splits = [f"{split}/{metric}" for split in ("val", "test") for metric in METRICS]
        writer.writerow(
            ["combination", "runs", *(f"{name}{end}" for name in splits for end in (" mean", " deviation"))]
        )
        for row in table:
            spreads = [*row.validation.values(), *row.test.values()]
            cells = [cell for each in spreads for cell in (each.mean, "" if each.deviation is None else each.deviation)]
            writer.writerow([row.overrides, row.num_runs, *cells])
