"""The server as an ASGI application, for `serve.py` and for uvicorn alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from flatfix.console import console, errors
from flatfix.machine import CORES, num_cores
from flatfix.serving import multiproc, settings

if TYPE_CHECKING:
    from flatfix.serving.guard import Guard


def create_app() -> Guard:
    """Return the server that the file named by `FLATFIX_SERVE_CONFIG` describes, or that of the defaults.

    Everything that has to be known before the libraries are imported is said here: a worker among several takes its
    share of the cores, and counts where the others find it.

    Raises:
        UserError: naming the option that is wrong.
    """
    file = os.environ.get(settings.VARIABLE)
    chosen = settings.Settings.of(settings.read(Path(file) if file else None))
    if multiprocessing.parent_process() is not None:  # of uvicorn, which started it beside others
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one sends SIGTERM
        os.environ.setdefault(CORES, str(max(1, num_cores() // chosen.workers)))
        multiproc.prepare(chosen.output / "serving" / "metrics")
    from flatfix.serving.routes import build

    app = build(chosen)
    console.quiet = errors.quiet = True  # from here on the log tells, and a terminal that is gone is no error
    return app
