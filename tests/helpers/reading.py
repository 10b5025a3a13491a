"""What a process prints, as it prints it."""

from __future__ import annotations

import subprocess


def read_until(process: subprocess.Popen[str], beginning: str) -> str:
    """Return what a process prints up to the line with this beginning, which must come."""
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(beginning):
            return said
    raise AssertionError(said)
