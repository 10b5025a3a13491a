from __future__ import annotations

import subprocess
import sys

import pytest

# What a decoder does: blocks of 16 MB as Pillow makes them, in a thread, with something small that stays behind them.
PROGRAM = """
import os, sys, threading
from PIL import Image
from flatfix.serving.preparation import keep_little_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def decode():
    for _ in range(3):
        picture = Image.new("RGB", (6000, 6000), 1)
        kept.append([Image.new("RGB", (200, 200), 1) for _ in range(20)])
        del picture

if sys.argv[1] == "little":
    keep_little_memory()
kept = []
before = resident()
for _ in range(4):
    thread = threading.Thread(target=decode)
    thread.start()
    thread.join()
print((resident() - before) // 10**6)
"""


def kept_mb(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_large_pictures_goes_back_to_the_system():
    assert kept_mb("little") < 90
    assert kept_mb("much") > 120
