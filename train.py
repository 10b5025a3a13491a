"""Train a classifier."""

from pathlib import Path
from typing import Any

from flatfix.config.entry import entry_point
from flatfix.config.exit_codes import ExitCode
from flatfix.config.options import TRAIN


@entry_point("train", conf=Path(__file__).parent / "conf", schema=TRAIN)
def main(cfg: dict[str, Any]) -> ExitCode:
    """Train a classifier on a dataset version, track the run in MLflow, and test the best checkpoint.

    Usage:
      python train.py                                   the demonstration: solar cells, frozen ImageNet backbone
      python train.py dataset=folder dataset.name=tires dataset.source.root=/data/tires model=resnet18
      python train.py model=resnet50 optimizer=adam     another model and optimizer
      python train.py experiment=cifar10 dataset.source.root=/data/cifar10
      python train.py debug=fast                        one batch of everything: does it run?

    Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 3 anything else, 75 interrupted.
    """
    from flatfix.training.run import train

    return train(cfg).exit_code


if __name__ == "__main__":
    main()
