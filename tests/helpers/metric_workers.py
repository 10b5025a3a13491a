"""Workers of one server, spawned as uvicorn spawns them, that do to their metrics what a test says."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from flatfix.serving import multiproc

SPAWN = multiprocessing.get_context("spawn")


class Worker:
    def __init__(self, folder: Path) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_work, args=(theirs, folder), daemon=True)
        self._process.start()
        assert self._answer() == "ready"

    def do(self, *statements: str) -> list[str]:
        """Return the lines of what `/metrics` answers after the statements, in which `metrics` is the worker's."""
        self._pipe.send(statements)
        return self._answer().splitlines()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _answer(self) -> str:
        assert self._pipe.poll(60)
        return self._pipe.recv()


def _work(pipe: Connection, folder: Path) -> None:
    multiproc.prepare(folder)
    from flatfix.serving.metrics import Metrics

    metrics = Metrics()
    pipe.send("ready")
    while True:
        for statement in pipe.recv():
            exec(statement, {"metrics": metrics})
        pipe.send(metrics.render()[0].decode())
