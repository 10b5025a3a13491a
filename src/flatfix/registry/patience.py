"""Calls to MLflow that another process or a short outage may fail, and that may be made twice."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 20.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


def patiently(call: Callable[[], T]) -> T:
    """Return what a call to MLflow returns; make it again, for 20 s, while it fails for a reason that may pass.

    Such reasons are a server that does not answer or has trouble of its own, a locked database, and the same row
    written by two at once: MLflow reads before it writes, and the second of two that found nothing gets BAD_REQUEST.
    """
    from mlflow.exceptions import MlflowException

    deadline = time.monotonic() + PATIENCE_S
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except MlflowException as error:
            status = error.get_http_status_code()
            may_pass = status >= 500 or status == 429 or error.error_code == "BAD_REQUEST"
            if not may_pass or time.monotonic() > deadline:
                raise
        time.sleep(pause_s * random.uniform(0.5, 1.5))  # those who failed together do not come back together
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
