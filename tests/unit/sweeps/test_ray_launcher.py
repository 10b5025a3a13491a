from __future__ import annotations

import pytest
from hydra.types import HydraContext
from omegaconf import OmegaConf

from flatfix.errors import UserError
from flatfix.sweeps.ray_launcher import RayLauncher, share
from tests.helpers.server import free_ports


@pytest.mark.parametrize(
    ("cores", "num_jobs", "expected"),
    [
        ([16, 16], 2, 16),
        ([16, 16], 4, 8),
        ([4, 4, 4], 4, 2),  # three each would leave room for three jobs
        ([64, 4], 2, 32),
        ([1, 1], 2, 1),
        ([1, 1], 8, 1),  # six wait
        ([], 2, 1),  # a cluster that is yet to grow
    ],
)
def test_jobs_divide_the_cores_so_that_all_run_at_a_time(cores: list[int], num_jobs: int, expected: int) -> None:
    assert share(cores, num_jobs) == expected


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "nowhere"])
def test_a_cluster_that_does_not_answer_is_named_at_once(address: str) -> None:
    address = address.format(port=free_ports(1)[0])
    launcher = RayLauncher(OmegaConf.create({"init": {"address": address}, "remote": {}}), workers=1)
    with pytest.raises(UserError, match=rf"hydra\.launcher\.ray: .*{address.split(':')[-1]}"):
        launcher.setup(
            hydra_context=HydraContext(None, None),  # type: ignore[arg-type]
            task_function=print,
            config=OmegaConf.create(),
        )
