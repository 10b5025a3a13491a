from __future__ import annotations

import pytest

from flatfix import machine
from flatfix.machine import CORES, cpu_name, num_cores


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


def test_the_rank_is_that_of_torchrun_or_srun_and_of_one_process_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert machine.rank() == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert machine.rank() == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert machine.rank() == 1
