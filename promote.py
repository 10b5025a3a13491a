"""Move a registered model to staging and production, and back."""

from pathlib import Path
from typing import Any

from flatfix.config.entry import entry_point
from flatfix.config.exit_codes import ExitCode
from flatfix.config.options import PROMOTE


@entry_point("promote", conf=Path(__file__).parent / "conf", schema=PROMOTE)
def main(cfg: dict[str, Any]) -> ExitCode:
    """Make the best registered model live, safely; roll it back; tell what is live and how it came there.

    Usage:
      python promote.py metric=F1                       the best candidate goes to staging
      python promote.py metric=F1 stage=production      the best of staging, if it passes the gates, goes live
      python promote.py action=rollback                 the version before goes live again
      python promote.py action=info                     what is live, since when, by whom
      python promote.py action=history                  every move there was
      python promote.py action=compare a=production b=7
      python promote.py action=register run_id=...      make a candidate of a run

    Exit codes: 0 done, 1 refused by a gate, 2 wrong usage, 3 anything else.
    """
    from flatfix.registry.command import run

    return run(cfg)


if __name__ == "__main__":
    main()
