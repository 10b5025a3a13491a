"""A job that lasts as long as it is told, and keeps when it began and ended. Knows nothing of Flatfix.

The folder that REPLAY names holds the durations in `durations.json`, by the number of the job; the value that the job
comes to follows from one parameter.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

PARAMETER = "tag(log,interval(1e-4,1e-1))"


def replay(number: int, parameter: float) -> float:
    """Sleep, write `<number>.json`, and return the value: 1 is the best, at 0.01."""
    folder = Path(os.environ["REPLAY"])
    duration_s = json.loads((folder / "durations.json").read_text())[number]
    began = time.time()
    time.sleep(duration_s)
    (folder / f"{number}.json").write_text(json.dumps([began, time.time()]))
    return 1 - math.log10(parameter / 0.01) ** 2
