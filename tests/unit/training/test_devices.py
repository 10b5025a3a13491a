from __future__ import annotations

from typing import Any

import pytest

from flatfix.errors import UserError
from flatfix.training.devices import Place, check_gpus, find_place

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234567",
}


def options(**changed: Any) -> dict[str, Any]:
    return {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "overfit_below": None, **changed}


def start(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_process_by_itself_leads_as_many_as_it_was_asked_for() -> None:
    assert find_place(options()) == Place()
    assert find_place(options(devices="auto")) == Place()
    assert find_place(options(devices=3)) == Place(num_ranks=3, num_local=3)


def test_torchrun_and_srun_say_where_a_process_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Place(5, 8, 1, 4, "node-a", 29500, is_started=True)
    with monkeypatch.context() as patch:
        start(patch, TORCHRUN)
        assert find_place(options(devices=4, num_nodes=2)) == expected
        assert find_place(options(devices="auto", num_nodes=2)) == expected
    start(monkeypatch, SRUN)
    place = find_place(options(devices="auto", num_nodes=2))
    assert place == Place(5, 8, 1, 4, "gpu07", 15000 + 4567, is_started=True)
    assert (place.machine, place.num_machines) == (1, 2)


def test_what_sbatch_runs_without_srun_is_a_process_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"})
    assert find_place(options()) == Place()


@pytest.mark.parametrize("changed", [{}, {"devices": 4}, {"devices": 2, "num_nodes": 2}])
def test_another_number_of_processes_than_was_started_is_refused(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    start(monkeypatch, TORCHRUN)
    with pytest.raises(UserError, match="8 processes were started, 4 on this machine.*devices=4 trainer.num_nodes=2"):
        find_place(options(**changed))


def test_one_process_cannot_start_those_of_other_machines() -> None:
    with pytest.raises(UserError, match="trainer.num_nodes=2: .*torchrun, or with deploy/slurm/train.sbatch"):
        find_place(options(num_nodes=2))


def test_more_devices_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="trainer.devices=99: 99 processes .* torch sees [0-9]"):
        check_gpus(options(accelerator="gpu", devices=99), Place(num_ranks=99, num_local=99))


def test_the_one_batch_test_is_refused_on_several_devices() -> None:
    with pytest.raises(UserError, match="trainer.overfit_below=0.1: .*trainer=default"):
        find_place(options(devices=2, overfit_below=0.1))
