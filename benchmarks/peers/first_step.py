"""Run a training script as its user does, up to the end of its first optimizer step. Knows nothing of Flatfix.

    python benchmarks/peers/first_step.py <result.json> <package to explain, or -> <script> [argument ...]

The file gets the moment of that end, on the clock that all processes share, and the CPU seconds until then. With a
package named, it also gets where the time went: seconds by import, or by function of that package.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

EVERY_S = 0.005


def place(frame: FrameType | None, package: str) -> str:
    """Say what a moment was spent on.

    While a module is imported, that is the outermost module outside `package`, by its first name: what it imports in
    turn counts for it. Otherwise it is the innermost function of `package`, with all that it calls elsewhere.
    """
    imported = function = ""
    while frame is not None:
        code, module = frame.f_code, str(frame.f_globals.get("__name__"))
        if code.co_name == "_find_and_load" and module == "importlib._bootstrap":
            name = str(frame.f_locals["name"]).partition(".")[0]
            imported = name if name != package or not imported else imported
        elif not function and module.partition(".")[0] == package and code.co_name != "<module>":
            function = f"{module.partition('.')[2]}: {code.co_name}"
        frame = frame.f_back
    return f"import {imported}" if imported else function or "start of Python"


def main() -> None:
    """Run the script; the process ends within it."""
    began = time.perf_counter()
    path, package, script, *arguments = sys.argv[1:]
    spent: Counter[str] = Counter()
    last = began

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.perf_counter()
        spent[place(frame, package)] += now - last  # type: ignore[assignment]  # a Counter of seconds
        last = now

    def stop(*_: Any) -> None:
        moment = {"monotonic_s": time.monotonic(), "cpu_s": time.process_time(), "spent_s": dict(spent)}
        Path(path).write_text(json.dumps(moment))
        os._exit(0)

    if package != "-":
        signal.signal(signal.SIGALRM, note)
        signal.setitimer(signal.ITIMER_REAL, EVERY_S, EVERY_S)

    from torch.optim import optimizer  # within what is measured, since the script imports it too

    optimizer.register_optimizer_step_post_hook(stop)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)  # in place of this one's
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
