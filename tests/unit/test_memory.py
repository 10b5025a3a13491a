from __future__ import annotations

import subprocess
import sys

import pytest

RESIDENT = """
import os

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""

# What a decoder does: blocks of 16 MB as Pillow makes them, in a thread, with something small that stays behind them.
DECODES = """
import sys, threading
from PIL import Image
from flatfix import memory

def decode():
    for _ in range(3):
        picture = Image.new("RGB", (6000, 6000), 1)
        kept.append([Image.new("RGB", (200, 200), 1) for _ in range(20)])
        del picture

if sys.argv[1] == "little":
    memory.keep_little()
kept = []
before = resident()
for _ in range(4):
    thread = threading.Thread(target=decode)
    thread.start()
    thread.join()
print((resident() - before) // 10**6)
"""

# What a training step does: a block of 64 MB, filled and freed, time after time.
TRAINS = """
import resource
import numpy as np
from flatfix import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.full(64 * 2**20, 1, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = resident()
usual = faults()
with memory.kept():
    faults()  # the first block is new to the allocator; in how large pages it comes is the system's affair
    within = faults()
print(usual, within, (resident() - before) // 10**6)
"""


def told(program: str, *words: str) -> list[int]:
    command = [sys.executable, "-c", RESIDENT + program, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_large_pictures_goes_back_to_the_system():
    assert told(DECODES, "little")[0] < 90
    assert told(DECODES, "much")[0] > 120


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_is_kept_is_not_asked_for_again_and_given_back_at_the_end():
    usual, within, left_mb = told(TRAINS)

    assert within < usual / 5
    assert left_mb < 40
