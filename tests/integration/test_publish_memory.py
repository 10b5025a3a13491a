from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

PUBLISH = """
import re, sys
from pathlib import Path
from flatfix.data.publish import publish
from flatfix.data.sources.folder import FolderSource
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore

publish(FolderSource(sys.argv[1]), LocalStore(sys.argv[2]), name="tiny", version="v1", rule=SplitRule())
# Not getrusage: its peak is at least that of the process which started this one.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak_bytes(folder, num_pictures):
    """Publish that many tiny pictures, all different, in a process of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (num_pictures, 8 * 8 * 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        path = folder / f"pictures/class_{number % 10}/{number:07d}.ppm"
        if number < 10:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"P6 8 8 255\n" + picture.tobytes())
    process = subprocess.run(
        [sys.executable, "-c", PUBLISH, str(folder / "pictures"), str(folder / "store")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(process.stdout.split()[-1]) * 1024


@pytest.mark.slow
def test_publishing_takes_at_most_500_bytes_of_memory_for_each_picture_more(tmp_path):
    few, many = 10_000, 100_000

    growth = peak_bytes(tmp_path / "many", many) - peak_bytes(tmp_path / "few", few)

    assert 100 < growth / (many - few) <= 500  # the names alone take more than the lower bound
