"""How many processes train a model together, a device each, and which of them this one is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from flatfix.errors import UserError

FIRST_PORT = 15000  # of Slurm's jobs, each of which gets one by its number


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that train together.

    Attributes:
        rank: its number; 0 leads.
        num_ranks: how many they are, on all machines.
        local_rank: its number on its machine, and that of its device there.
        num_local: how many are on its machine.
        address: the machine of rank 0.
        port: where rank 0 is to be found there, 0 while it has not yet chosen one.
        is_started: torchrun, Slurm or rank 0 has started it beside the others; else it starts them.
    """

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    num_local: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    is_started: bool = False

    @property
    def machine(self) -> int:
        """The number of its machine."""
        return self.rank // self.num_local

    @property
    def num_machines(self) -> int:
        """How many machines there are."""
        return self.num_ranks // self.num_local

    def variables(self, rank: int) -> dict[str, str]:
        """Return what torch and Lightning read in the environment of a process of this machine, as torchrun sets it."""
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(self.num_ranks),
            "LOCAL_RANK": str(rank % self.num_local),
            "LOCAL_WORLD_SIZE": str(self.num_local),
            "GROUP_RANK": str(self.machine),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }

    def lightning(self) -> dict[str, Any]:
        """Return what Lightning's trainer has to know; it starts no process itself."""
        if self.num_ranks == 1:
            return {"devices": 1}
        strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment(), gradient_as_bucket_view=True)
        return {"devices": self.num_local, "num_nodes": self.num_machines, "strategy": strategy}


def find_place(trainer: Mapping[str, Any]) -> Place:
    """Return where this process stands.

    Args:
        trainer: the options of the config group `trainer`.

    Raises:
        UserError: when the options ask for something else than what started the processes.
    """
    place = started_place() or _alone(trainer)
    _check(trainer, place)
    return place


def check_gpus(trainer: Mapping[str, Any], place: Place) -> None:
    """Refuse more processes than this machine has GPUs.

    Raises:
        UserError: about this machine; another may have more.
    """
    num_gpus = torch.cuda.device_count()
    if (_has_gpu(trainer) or trainer["accelerator"] == "gpu") and place.num_local > max(1, num_gpus):
        raise UserError(  # none at all: precision says so
            f"trainer.devices={trainer['devices']}: {place.num_local} processes of this machine need a GPU each, and "
            f"torch sees {num_gpus}. Use fewer, or trainer=ddp_cpu. Where jobs of a sweep (sweep.workers) or tasks of "
            "Slurm (--gpus-per-task) divide the GPUs, each sees its own alone."
        )


def started_place() -> Place | None:
    """Return where this process stands, None where it was started by itself."""
    return _of_torchrun() or _of_slurm()


def _of_torchrun() -> Place | None:
    env = os.environ
    if int(env.get("WORLD_SIZE", "1")) == 1 or "RANK" not in env:
        return None
    return Place(
        rank=int(env["RANK"]),
        num_ranks=int(env["WORLD_SIZE"]),
        local_rank=int(env["LOCAL_RANK"]),
        num_local=int(env["LOCAL_WORLD_SIZE"]),
        address=env["MASTER_ADDR"],
        port=int(env["MASTER_PORT"]),
        is_started=True,
    )


def _of_slurm() -> Place | None:
    """Read what srun tells each task; in what sbatch itself runs, the number of tasks of a step is missing."""
    env = os.environ
    num_ranks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if num_ranks == 1:
        return None
    return Place(
        rank=int(env["SLURM_PROCID"]),
        num_ranks=num_ranks,
        local_rank=int(env["SLURM_LOCALID"]),
        num_local=num_ranks // int(env["SLURM_STEP_NUM_NODES"]),
        address=env.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(env["SLURM_STEP_NODELIST"]),
        port=int(env.get("MASTER_PORT") or FIRST_PORT + int(env["SLURM_JOB_ID"]) % 10_000),
        is_started=True,
    )


def _has_gpu(trainer: Mapping[str, Any]) -> bool:
    return trainer["accelerator"] != "cpu" and torch.cuda.is_available()


def _alone(trainer: Mapping[str, Any]) -> Place:
    if trainer["num_nodes"] > 1:
        raise UserError(
            f"trainer.num_nodes={trainer['num_nodes']}: one process cannot start those of other machines. Start "
            "train.py on each with torchrun, or with deploy/slurm/train.sbatch."
        )
    num_devices = trainer["devices"]
    if num_devices == "auto":
        num_devices = torch.cuda.device_count() if _has_gpu(trainer) else 1
    return Place(num_ranks=num_devices, num_local=num_devices)


def _check(trainer: Mapping[str, Any], place: Place) -> None:
    devices, num_nodes = trainer["devices"], trainer["num_nodes"]
    num_local = place.num_local if devices == "auto" else devices
    if num_local * num_nodes != place.num_ranks:
        raise UserError(
            f"trainer.devices={devices}, trainer.num_nodes={num_nodes}: {place.num_ranks} processes were started, "
            f"{place.num_local} on this machine. Set trainer.devices={place.num_local} "
            f"trainer.num_nodes={place.num_machines} (trainer=ddp or trainer=ddp_cpu), or start train.py by itself."
        )
    if place.num_ranks > 1 and trainer["overfit_below"]:
        raise UserError(
            f"trainer.overfit_below={trainer['overfit_below']}: the one-batch test runs on one device. "
            "Use trainer=default."
        )
