"""What `serve.py` does: bind the port, and run uvicorn until it is told to stop."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from flatfix.config.exit_codes import ExitCode
from flatfix.console import complain, console, errors, say
from flatfix.errors import UserError
from flatfix.serving import settings
from flatfix.serving.keys import Keys
from flatfix.serving.last_good import LastGood
from flatfix.serving.protocol import Protocol
from flatfix.serving.settings import Settings
from flatfix.serving.source import RegistryUnreachableError, Source
from flatfix.tracking.connection import redact

APP = "flatfix.serving.app:create_app"  # by its name, since workers import it themselves
BACKLOG = 2048  # connections that the kernel keeps while the server is busy
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def run(config: Mapping[str, Any]) -> ExitCode:
    """Serve until SIGTERM or Ctrl-C; requests in flight are answered first.

    Raises:
        UserError: naming the option that is wrong.
    """
    _fill_standard_streams()
    chosen = Settings.of(config)
    if chosen.keys:
        Keys.read(chosen.keys)
    if chosen.journal_mb or chosen.workers > 1:
        _check_output(chosen.output)
    _check_registry(chosen)
    with _listener(chosen.host, chosen.port) as listener, _told(config):
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        say(f"alias={chosen.alias} of {redact(chosen.uri)}: http://{shown}:{port} (interface: /docs)")
        if host not in LOOPBACK and not chosen.predict_needs_key:
            say("every host that reaches this port may predict: auth.predict=true asks for a key")
        server = uvicorn.Config(
            APP,
            factory=True,
            http=Protocol,
            ws="none",
            lifespan="on",
            workers=chosen.workers,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=round(chosen.limits.idle_s),
            timeout_graceful_shutdown=round(chosen.limits.drain_s),
        )
        try:
            if chosen.workers > 1:
                Multiprocess(server, sockets=[listener]).run()
            else:
                uvicorn.Server(server).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises the signal that stopped it anew, when all is answered
            pass
        finally:
            console.quiet = errors.quiet = False  # which `create_app` made them
    return ExitCode.DONE


def _fill_standard_streams() -> None:
    """Open what was closed of the standard streams: the next socket would get its number, and what is logged."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _check_output(folder: Path) -> None:
    """Make the folder of records and metrics.

    Raises:
        UserError: it cannot be written to.
    """
    records = folder / "serving"
    try:
        records.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=records):
            pass
    except OSError as error:
        raise UserError(f"paths.output={folder}: cannot be written to ({error.strerror}). Choose another") from error


def _check_registry(chosen: Settings) -> None:
    """Refuse to follow what is not there, while somebody looks on; later, a server waits for it.

    Raises:
        UserError: nothing is registered there by this name, and nothing was served before.
    """
    if LastGood.of(chosen.cache / "serving", chosen.uri, chosen.name, chosen.alias).facts() is not None:
        return
    say(f"looking for alias={chosen.alias} at {redact(chosen.uri)}")
    source = Source(chosen.uri, chosen.name, chosen.alias, chosen.cache)
    try:
        if source.find_any() is None:
            raise UserError(f"alias={chosen.alias}: the registered model has no version. Register one: promote.py")
    except RegistryUnreachableError as error:
        if chosen.uri.startswith("sqlite:"):
            raise
        complain(f"waiting for the registry: {error}")


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(f"host={host} port={port}: cannot be listened on ({error.strerror}). Choose others") from error
    listener.set_inheritable(True)
    return listener


@contextmanager
def _told(config: Mapping[str, Any]) -> Iterator[None]:
    """Leave the options where `create_app` reads them, in this process and in workers."""
    with TemporaryDirectory(prefix="flatfix-serve-") as folder:
        file = Path(folder, "serve.yaml")
        settings.write(config, file)
        os.environ[settings.VARIABLE] = str(file)
        try:
            yield
        finally:
            del os.environ[settings.VARIABLE]
