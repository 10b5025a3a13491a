"""Freeze a source into a dataset version, or list the versions."""

from pathlib import Path
from typing import Any

from flatfix.config.entry import entry_point
from flatfix.config.exit_codes import ExitCode
from flatfix.config.options import PUBLISH


@entry_point("publish", conf=Path(__file__).parent / "conf", schema=PUBLISH)
def main(cfg: dict[str, Any]) -> ExitCode:
    """Freeze a source into a dataset version that never changes, or list the versions of a store.

    Usage:
      python publish.py dataset=folder dataset.name=tires dataset.version=split_1 dataset.source.root=/data/tires
      python publish.py action=list

    Exit codes: 0 done, 2 wrong usage, 3 anything else.
    """
    from flatfix.data.command import run

    run(cfg)
    return ExitCode.DONE


if __name__ == "__main__":
    main()
