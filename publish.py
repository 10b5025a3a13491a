"""Freeze a source into a dataset version, or look at, check and derive versions."""

from pathlib import Path
from typing import Any

from flatfix.config.entry import entry_point
from flatfix.config.exit_codes import ExitCode
from flatfix.config.options import PUBLISH


@entry_point("publish", conf=Path(__file__).parent / "conf", schema=PUBLISH)
def main(cfg: dict[str, Any]) -> ExitCode:
    """Freeze a source into a dataset version that never changes, or look at, check and derive the versions of a store.

    Usage:
      python publish.py dataset=folder dataset.name=tires dataset.version=split_1 dataset.source.root=/data/tires
      python publish.py action=list
      python publish.py action=verify dataset.name=tires dataset.version=split_1   (show: what it holds)
      python publish.py action=diff dataset.name=tires dataset.version=split_2 against=split_1
      python publish.py action=pull dataset.name=tires dataset.version=split_1 to=/data/pulled
      python publish.py action=derive dataset.name=tires dataset.version=split_2 from=split_1 labels=fix.csv

    Exit codes: 0 done, 1 a version is damaged, 2 wrong usage, 3 anything else.
    """
    from flatfix.data.command import run

    return run(cfg)


if __name__ == "__main__":
    main()
