"""What a sweep leaves behind: its tables, its figures and its page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from optuna import Study

from flatfix.files import replacing
from flatfix.sweeps import figures, page
from flatfix.sweeps.summary import Summary, unbeaten
from flatfix.sweeps.table import Row, rows, write_csv

FOLDER = "findings"


def write_findings(study: Study, objectives: Sequence[str], summary: Summary, folder: Path) -> Path:
    """Write what was found below the folder of the multirun, over what an earlier part of the sweep wrote there.

    `optimization_results.yaml`, in the folder itself, is that of hydra-optuna-sweeper.

    Returns:
        The folder `findings`.
    """
    here = folder / FOLDER
    here.mkdir(parents=True, exist_ok=True)
    write_csv(study, objectives, here / "trials.csv")
    with replacing(here / "summary.json") as partial:
        partial.write_text(summary.to_json(), encoding="utf-8")
    drawn = figures.draw(study, objectives, here)
    page.write(study, objectives, summary, drawn, here)
    with replacing(folder / "optimization_results.yaml") as partial:
        OmegaConf.save(OmegaConf.create(_results(summary)), partial)
    return here


def best_first(study: Study) -> list[Row]:
    """Return the complete trials of a study, the best first; of two objectives those that no other beats."""
    signs = [1 if direction.name == "MINIMIZE" else -1 for direction in study.directions]
    table = rows(study)
    if len(signs) > 1:
        return unbeaten(table, signs)
    complete = [row for row in table if row.state == "complete" and math.isfinite(row.values[0])]
    return sorted(complete, key=lambda row: signs[0] * row.values[0])


def _results(summary: Summary) -> dict[str, object]:
    if len(summary.objectives) > 1:
        solutions = [{"params": dict(each.params), "values": [*each.values.values()]} for each in summary.winners]
        return {"name": "optuna", "solutions": solutions}
    if not summary.winners:
        return {"name": "optuna"}
    (best,) = summary.winners
    return {"name": "optuna", "best_params": dict(best.params), "best_value": best.values[summary.objectives[0]]}
