"""A real server in a process of its own, to start, hang, kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

START_TIMEOUT_S = 60  # 3 s on a quiet machine
STOP_TIMEOUT_S = 20


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Return when `condition` holds; fail when it does not within the bound."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Return different ports that nothing listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Server:
    """A server over the files of `folder`; as a context manager it is running inside and gone outside.

    A subclass says how it is started (`_command`), when it is up (`_is_ready`), and on which `ports` it listens, the
    same ones each time.
    """

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.folder = folder
        self.ports = tuple(ports)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, on the same ports and data each time, and wait until it is ready."""
        assert self._process is None, "runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                env={**os.environ, **self._environment()},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own: a server may start workers, which must go with it
            )
        try:
            wait_until(self._is_ready_or_died, START_TIMEOUT_S, " ".join(self._command()))
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the server as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server and its workers in the middle of whatever they do."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let the server hang: it takes connections and answers none."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def wait(self) -> None:
        """Return when the server ends."""
        assert self._process is not None, "does not run"
        self._process.wait()

    @property
    def is_running(self) -> bool:
        """Whether the server has been started and not ended."""
        return self._process is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_running:
            self.kill()

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        """Return what the server's environment has beside ours."""
        return {}

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _is_ready_or_died(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None or self._is_ready()

    def _is_listening(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def _signal(self, which: signal.Signals) -> None:
        assert self._process is not None, "does not run"
        os.killpg(self._process.pid, which)

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None, "does not run"
        with suppress(ProcessLookupError):  # it may have died by itself
            self._signal(how)
        self._process.wait(timeout=STOP_TIMEOUT_S)
        self._process = None
        wait_until(lambda: not any(map(self._is_listening, self.ports)), STOP_TIMEOUT_S, f"end of {self.ports}")
