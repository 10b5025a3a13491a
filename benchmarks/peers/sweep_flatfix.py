"""Replayed jobs under Flatfix: train.py, but for the training itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.replay import replay
from flatfix.config.entry import entry_point
from flatfix.config.options import TRAIN
from flatfix.sweeps.plugins import register

CONF = Path(__file__).parents[2] / "conf"


def replayed(cfg: Mapping[str, Any], **_: Any) -> Any:
    """Do nothing for as long as the recorded training took."""
    from flatfix.config.exit_codes import ExitCode
    from flatfix.training.result import RunResult

    value = replay(cfg["sweep"]["trial"], cfg["optimizer"]["lr"])
    return RunResult(
        run_id="",
        folder=cfg["paths"]["run"],
        status="FINISHED",
        exit_code=ExitCode.DONE,
        num_epochs=1,
        objectives={"accuracy": value},
    )


@entry_point("train", conf=CONF, schema=TRAIN, plugins=register)
def main(cfg: dict[str, Any]) -> Any:
    """Replay a training."""
    from flatfix.sweeps.job import run

    return run(cfg, train=replayed)


if __name__ == "__main__":
    main()
