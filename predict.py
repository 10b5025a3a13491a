"""Predict the classes of pictures without labels."""

import os
from pathlib import Path
from typing import Any

from flatfix.config.entry import entry_point
from flatfix.config.exit_codes import ExitCode
from flatfix.config.options import PREDICT


@entry_point("predict", conf=Path(__file__).parent / "conf", schema=PREDICT)
def main(cfg: dict[str, Any]) -> ExitCode:
    """Predict the class of every picture of a folder, a list or an S3 prefix, as the model's decision has it.

    Usage:
      python predict.py alias=production input=/data/new        the registered model that is live, as it is served
      python predict.py checkpoint=outputs/runs/<run> input=/data/new
      python predict.py checkpoint=best.ckpt input=files.txt output=predictions.csv
      python predict.py checkpoint=best.ckpt input=s3://bucket/prefix accelerator=gpu batch_size=256

    Exit codes: 0 done, 1 some pictures cannot be read, 2 wrong usage, 3 anything else, 75 interrupted.
    """
    # Threads of the model that wait must leave the cores to those that decode; torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from flatfix.prediction.run import run

    return run(cfg)


if __name__ == "__main__":
    main()
