"""Write or read a data set as one system does, in a process of its own, and print what was measured as JSON.

    python -m benchmarks.peers.child read litdata '{"uri": "s3://…", …}'

The keys are the fields of `task.Task`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.peers.task import Epoch, Task

LATER_S = 2  # later epochs are repeated until they have taken so long,
MAX_LATER = 50  # or are so many


def measured(system: Any, task: Task) -> dict[str, Any]:
    """Return the pictures, seconds and bytes of the first epoch, and the pictures and seconds of each later one.

    The first epoch has all that a run does before its first batch but starting Python and importing.
    """
    start, before = time.perf_counter(), loopback_bytes()
    epoch = system.read(task)
    num_first = total(epoch, 0)
    first_s, bytes_moved = time.perf_counter() - start, loopback_bytes() - before
    later = [(num_first, first_s)] if getattr(system, "KEEPS_NOTHING", False) else []
    while sum(seconds for _, seconds in later) < LATER_S and len(later) < MAX_LATER:
        begun = time.perf_counter()
        later.append((total(epoch, len(later) + 1), time.perf_counter() - begun))
    return {"num_first": num_first, "first_s": first_s, "bytes_moved": bytes_moved, "later": later}


def total(epoch: Epoch, number: int) -> int:
    """Go through an epoch, touch each batch, so that nothing stays lazy, and count the pictures."""
    count = checksum = 0
    for images, labels in epoch(number):
        count += len(images)
        checksum += int(images[0, 0, 0, 0]) + int(labels[0])
    return count


def loopback_bytes() -> int:
    """Return how many bytes the loopback interface has carried."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.partition(":")[2].split()[0])


def main() -> None:
    verb, name, options = sys.argv[1:]
    values = json.loads(options)
    paths = {field.name: Path(values[field.name]) for field in fields(Task) if field.type == "Path"}
    task = Task(**{**values, **paths})
    system = importlib.import_module(f"benchmarks.peers.{name}")
    if verb == "write":
        system.write(task)
    else:
        print(json.dumps(measured(system, task)))


if __name__ == "__main__":
    main()
