"""The last lines of a run: what it reached, where it lies, and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flatfix.console import say, table
from flatfix.evaluation.report import Evaluation
from flatfix.training.result import RunResult


def print_result(result: RunResult, evaluation: Evaluation, tracking_uri: str) -> None:
    """Print the metrics of the checkpoint that counts, where everything is, and the command that opens MLflow."""
    say("")
    splits = (("validation", result.validation), ("test", result.test))
    table(["", *result.test], [[split, *(f"{value:.4f}" for value in figures.values())] for split, figures in splits])
    if result.qualification:
        verdict = "qualified" if result.qualification.is_qualified else "not qualified"
        say(f"\n{verdict}: {result.qualification.reason}")
    say(f"checkpoint: {_shown(result.checkpoint)} (epoch {result.best_epoch + 1} of {result.num_epochs})")
    say(f"predictions: {_shown(evaluation.predictions_path)}")
    for path in evaluation.figure_paths:
        say(f"figure: {_shown(path)}")
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
