"""Trainings that are killed at a place of one's choice, each in a process of its own that starts in no time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers.compose import ROOT


class Kill(NamedTuple):
    """Send a signal from within a hook of the module, after so many steps of the optimizer."""

    number: int
    hook: str
    step: int


class Nursery:
    """A process that has imported all that training needs, and forks for each run.

    Pictures are decoded by two processes, however few there are. What the runs print goes to a file.
    """

    def __init__(self, log: Path) -> None:
        self._log = log

    def __enter__(self) -> Nursery:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.helpers.mortal import breed; breed()"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
                "OMP_NUM_THREADS": "1",
                "FLATFIX_CORES": "2",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("ab"),
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, output: Path, *overrides: str, kill: Kill | None = None) -> int:
        """Train, and return the exit code, or minus the number of the signal that the process died of."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([str(output), overrides, kill]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, self._log.read_text()
        return int(line)


def breed() -> None:
    """Run what comes on the standard input, one line at a time."""
    from flatfix.training import run  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_live(*json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _live(output: str, overrides: list[str], kill: list[Any] | None) -> int:
    from flatfix.data import encoded
    from flatfix.training.run import train
    from tests.helpers.compose import compose_train

    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.close(sys.stdin.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    encoded.PAYS_FOR_PROCESSES = 0
    if kill:
        _arm(Kill(*kill))
    try:
        return train(compose_train(Path(output), *overrides)).exit_code
    except BaseException:
        traceback.print_exc()
        return 1


def _arm(kill: Kill) -> None:
    from flatfix.training.module import TrainingModule

    hook = getattr(TrainingModule, kill.hook)
    pending = [kill.number]

    def killing(self: TrainingModule, *args: Any) -> Any:
        if self.global_step == kill.step and pending:
            os.kill(os.getpid(), pending.pop())
        return hook(self, *args)

    setattr(TrainingModule, kill.hook, killing)
