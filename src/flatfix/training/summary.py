"""The last lines of a run: what it reached, where it lies, and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flatfix.console import say, table
from flatfix.evaluation.report import Evaluation
from flatfix.inference.decision import Decision
from flatfix.training.result import RunResult


def print_result(result: RunResult, evaluation: Evaluation, decision: Decision, tracking_uri: str) -> None:
    """Print the metrics of the checkpoint that counts, where everything is, and the command that opens MLflow."""
    say("")
    table(
        ["", *result.test],
        [
            ["validation", *(f"{value:.4f}" for value in result.validation.values())],
            ["test", *(f"{value:.4f}" for value in result.test.values())],
            ["95 % from", *(f"{evaluation.intervals[name][0]:.4f}" for name in result.test)],
            ["95 % to", *(f"{evaluation.intervals[name][1]:.4f}" for name in result.test)],
        ],
    )
    before, after = evaluation.calibration_error
    if decision.temperature != 1:
        say(f"\ncalibration: temperature {decision.temperature:.3f}; expected error on test {before:.4f} → {after:.4f}")
    if decision.positive is not None:
        say(f"decision: threshold {decision.threshold:.4f} ({decision.rule})")
    if decision.review:
        say(f"review: probabilities from {decision.review[0]:.4f} to {decision.review[1]:.4f}")
    if result.qualification:
        verdict = "qualified" if result.qualification.is_qualified else "not qualified"
        say(f"\n{verdict}: {result.qualification.reason}")
    say(f"checkpoint: {_shown(result.checkpoint)} (epoch {result.best_epoch + 1} of {result.num_epochs})")
    say(f"predictions: {_shown(evaluation.predictions_path)}")
    if evaluation.report_path:
        say(f"report: {_shown(evaluation.report_path)}")
    say(f"run: {result.run_id}")
    mlflow = _shown(Path(sys.executable).with_name("mlflow"))
    is_server = tracking_uri.startswith("http")
    say(f"see it: {tracking_uri}" if is_server else f"see it: {mlflow} ui --backend-store-uri {tracking_uri}")


def print_profile(durations: Mapping[str, Sequence[float]], rows: int = 15) -> None:
    """Print where the time of training went, the costliest first."""
    costliest = sorted(durations.items(), key=lambda item: -sum(item[1]))[:rows]
    say("\nwhere the time went; an action includes those that it calls")
    table(
        ["action", "calls", "total s", "mean ms"],
        [
            [action[:64], f"{len(times)}", f"{sum(times):.2f}", f"{1000 * sum(times) / len(times):.2f}"]
            for action, times in costliest
        ],
    )


def _shown(path: str | Path | None) -> str:
    """Return a path below the working directory as seen from there."""
    if path is None:
        return "none"
    full = Path(path)
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)
