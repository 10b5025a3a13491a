from __future__ import annotations

import os
import sys
import threading

import pytest

from flatfix import machine
from flatfix.machine import CORES, NICE, cpu_name, num_cores, step_back


@pytest.mark.parametrize(("quota", "expected"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)])
def test_the_quota_of_a_container_bounds_the_cores(tmp_path, monkeypatch, quota, expected):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "none")
    without = num_cores()
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")

    assert num_cores() == (expected or without)


@pytest.mark.parametrize(("share", "expected"), [("1", 1), ("0", 1), ("1000000", None), ("many", None)])
def test_a_process_that_divides_the_cores_with_others_uses_its_share(monkeypatch, share, expected):
    monkeypatch.delenv(CORES, raising=False)
    without = num_cores()
    monkeypatch.setenv(CORES, share)

    assert num_cores() == (expected or without)


def test_the_processor_has_a_name():
    assert cpu_name().strip()


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a nice value of its own on Linux only")
def test_a_thread_steps_back_alone_and_with_those_that_it_starts():
    found = []

    def step_back_and_start_another() -> None:
        step_back()
        another = threading.Thread(target=lambda: found.append(os.getpriority(os.PRIO_PROCESS, 0)))
        another.start()
        another.join()

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=step_back_and_start_another)
    thread.start()
    thread.join()

    assert found == [NICE]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before != NICE
