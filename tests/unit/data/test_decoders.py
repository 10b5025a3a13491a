from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flatfix.data.decoders import Decoders, UnreadablePictureError
from flatfix.inference.decode import load
from tests.helpers.images import colours, encode

SRC = Path(__file__).parents[3] / "src"
NUM_PROCESSES = pytest.mark.parametrize("num_processes", [0, 2])


def pictures(count=5, first=0):
    return [encode(colours(seed=first + number), "JPEG") for number in range(count)]


@NUM_PROCESSES
def test_threads_and_processes_give_the_pixels_that_load_gives(num_processes):
    some = pictures()
    for rule in ("squash", "pad"):
        with Decoders(16, rule, num_processes) as decoders:
            np.testing.assert_array_equal(decoders.decode(some), [load(data, 16, rule) for data in some])
            assert decoders.decode([]).shape == (0, 16, 16, 3)


@NUM_PROCESSES
def test_every_thread_gets_the_pictures_that_it_asked_for(num_processes):
    batches = [pictures(3, first) for first in range(40)]
    with Decoders(16, "squash", num_processes) as decoders, ThreadPoolExecutor(8) as threads:
        for batch, pixels in zip(batches, threads.map(decoders.decode, batches), strict=True):
            np.testing.assert_array_equal(pixels, [load(data, 16, "squash") for data in batch])


@NUM_PROCESSES
def test_a_picture_that_does_not_decode_is_named_and_the_next_batch_decodes(num_processes):
    some = pictures()
    with Decoders(16, "squash", num_processes) as decoders:
        for _ in range(3):
            with pytest.raises(UnreadablePictureError) as caught:
                decoders.decode([*some[:2], b"no picture", b""])
            assert (caught.value.place, caught.value.reason[:13]) == (2, "not a picture")
            assert decoders.decode(some).shape == (5, 16, 16, 3)


def test_a_process_that_is_killed_is_an_error_and_no_wait_without_end():
    with Decoders(16, "squash", 1) as decoders:
        decoders.decode(pictures())
        (process,) = decoders._processes
        process.kill()
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"a process that decodes pictures ended \(exit code -9\)"):
                decoders.decode(pictures())


def test_the_processes_end_with_the_decoders():
    with Decoders(16, "squash", 2) as decoders:
        decoders.decode(pictures())
        processes = decoders._processes
        assert [process.poll() for process in processes] == [None, None]
    assert [process.returncode for process in processes] == [0, 0]


# As in a notebook: not in a file, and with nothing that keeps an import from running it again.
UNGUARDED = """
import os, signal, sys
from flatfix.data.decoders import Decoders
picture = bytes.fromhex(sys.argv[1])
decoders = Decoders(8, "squash", 2)
for _ in range(2):
    assert decoders.decode([picture] * 3).shape == (3, 8, 8, 3)
print(*(process.pid for process in decoders._processes), flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "interrupted":
    os.killpg(0, signal.SIGINT)
"""


@pytest.mark.parametrize(("how", "code"), [("ended", 0), ("killed", -signal.SIGKILL), ("interrupted", -signal.SIGINT)])
def test_they_work_from_any_script_and_end_with_it_however_it_ends(how, code):
    script = subprocess.run(
        [sys.executable, "-", pictures()[0].hex(), how],
        input=UNGUARDED,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        start_new_session=True,
        timeout=60,
    )

    assert script.returncode == code
    pids = [int(pid) for pid in script.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and is_decoding(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "decoders" not in script.stderr  # no traceback of a process


def is_decoding(pid):
    try:
        return b"flatfix.data.decoders" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
