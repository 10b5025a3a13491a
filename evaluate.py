"""Evaluate a registered model on labelled pictures."""

from pathlib import Path
from typing import Any

from flatfix.config.entry import entry_point
from flatfix.config.exit_codes import ExitCode
from flatfix.config.options import EVALUATE


# conf/experiment is a group of train.py: Hydra would look there for the file of that name.
@entry_point(
    "evaluate", conf=Path(__file__).parent / "conf", schema=EVALUATE, short={"experiment": "tracking.experiment"}
)
def main(cfg: dict[str, Any]) -> ExitCode:
    """Evaluate the registered model as it is served, without training: metrics with intervals, tables, a report.

    Usage:
      python evaluate.py                                the production version, on the newest version of its dataset
      python evaluate.py alias=staging split=val
      python evaluate.py data=/data/new                 a folder of class folders
      python evaluate.py data=labels.csv limit=500
      python evaluate.py experiment=looks run_name=now  the MLflow experiment and name of the run (tracking.experiment)
      python evaluate.py plot=only csv=predictions.csv  the confusion matrix of any table of label and prediction

    Exit codes: 0 done, 1 some pictures cannot be read, 2 wrong usage, 3 anything else, 75 interrupted.
    """
    from flatfix.registry.evaluation import run

    return run(cfg)


if __name__ == "__main__":
    main()
