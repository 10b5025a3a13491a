"""Train a classifier."""

from pathlib import Path
from typing import Any

from flatfix.config.entry import entry_point
from flatfix.config.options import TRAIN
from flatfix.sweeps.plugins import register

SHORT = {"trainer.batch_size": "dataset.batch_size"}


@entry_point("train", conf=Path(__file__).parent / "conf", schema=TRAIN, short=SHORT, plugins=register)
def main(cfg: dict[str, Any]) -> Any:
    """Train a classifier on a dataset version, track the run in MLflow, and test the best checkpoint.

    Usage:
      python train.py                                   the demonstration: solar cells, frozen ImageNet backbone
      python train.py dataset=folder dataset.name=tires dataset.source.root=/data/tires model=resnet18
      python train.py model=resnet50 optimizer=adam     another model and optimizer
      python train.py experiment=cifar10 dataset.source.root=/data/cifar10
      python train.py debug=fast                        one batch of everything: does it run?
      python train.py -m model=resnet18,cnn seed=1,2,3  every combination
      python train.py -m sweep=tpe sweep.workers=2      look for the best with Optuna: docs/sweeps.md

    Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 3 anything else, 75 interrupted.
    """
    from flatfix.sweeps.job import run

    return run(cfg)


if __name__ == "__main__":
    main()
