from __future__ import annotations

import os
import subprocess
import sys

from flatfix.sweeps.worker import is_gone, this_process


def test_a_process_is_gone_when_it_has_ended_or_its_number_is_that_of_another() -> None:
    code = "from flatfix.sweeps.worker import this_process; print(this_process(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        worker = other.stdout.readline().strip()
        assert not is_gone(worker)
        other.kill()
        assert other.stdout.read() == ""  # it has ended, and nobody has asked for its exit code yet
        other.wait()
        assert is_gone(worker)
    place, number, began = this_process().rsplit(" ", 2)
    assert number == str(os.getpid())
    assert not is_gone(this_process())
    assert is_gone(f"{place} {number} {float(began) - 60:.2f}")


def test_of_a_process_elsewhere_nothing_is_known() -> None:
    assert not is_gone("another-boot pid:[4026531836] 1 5.00")
