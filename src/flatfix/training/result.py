"""What a run comes to."""

from __future__ import annotations

from dataclasses import dataclass, field

from flatfix.config.exit_codes import ExitCode
from flatfix.evaluation.qualification import Qualification


@dataclass(frozen=True)
class RunResult:
    """Tell how a run ended, in plain values.

    `validation` and `test` hold the metrics of the checkpoint that counts; `best_epoch` counts from 0, -1 for none;
    `package` is the folder of the model package of a run that qualified. `objectives` holds a value for each of
    `sweep.objectives`, and nothing where training was cut short: `is_pruned` says that a sweep did so.
    """

    run_id: str
    folder: str
    status: str
    exit_code: ExitCode
    checkpoint: str | None = None
    best_epoch: int = -1
    num_epochs: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    qualification: Qualification | None = None
    package: str | None = None
    objectives: dict[str, float] = field(default_factory=dict)
    is_pruned: bool = False
