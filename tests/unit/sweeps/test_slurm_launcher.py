from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import OmegaConf

from flatfix.config import resolvers
from flatfix.errors import UserError
from flatfix.sweeps import plugins
from flatfix.sweeps.slurm_launcher import SlurmLauncher
from tests.helpers import slurm
from tests.helpers.compose import CONF


def launcher(*overrides: str) -> SlurmLauncher:
    """Make what `python train.py -m hydra/launcher=submitit <overrides>` would."""
    resolvers.register()
    plugins.register()
    words = ["hydra/launcher=submitit", "sweep.name=night", "paths.output=/out", *overrides]
    with hydra.initialize_config_dir(str(CONF)):
        config = hydra.compose("train", overrides=words, return_hydra_config=True)
    OmegaConf.resolve(config.hydra.launcher)
    made = Plugins.instance()._instantiate(config.hydra.launcher)
    assert isinstance(made, SlurmLauncher)
    made.setup(hydra_context=HydraContext(None, None), task_function=print, config=config)  # type: ignore[arg-type]
    return made


@pytest.fixture
def with_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", slurm.install(tmp_path / "slurm")["PATH"])


def script(made: SlurmLauncher) -> list[str]:
    """Return the lines of what sbatch would be given."""
    text: str = made.executor._executor._make_submission_file_text("python job.py", "1")
    return text.splitlines()


@pytest.mark.usefixtures("with_slurm")
def test_the_script_for_slurm_asks_for_what_the_config_says(tmp_path: Path) -> None:
    lines = script(
        launcher(
            f"hydra.sweep.dir={tmp_path}",
            "hydra.launcher.partition=gpu",
            "hydra.launcher.timeout_min=90",
            "hydra.launcher.gpus_per_node=2",
            "hydra.launcher.cpus_per_task=8",
            "hydra.launcher.mem_gb=32",
            "hydra.launcher.account=vision",
        )
    )
    asked = {"partition=gpu", "time=90", "gpus-per-node=2", "cpus-per-task=8", "mem=32GB", "account=vision"}
    assert {f"#SBATCH --{each}" for each in asked | {"job-name=night", "nodes=1"}} <= set(lines)
    (command,) = [line for line in lines if line.startswith("srun")]
    assert "--cpus-per-task=8" in command, "the job would have one core"
    assert command.endswith("python job.py")
    assert f"#SBATCH --output={tmp_path}/.submitit/%j/%j_0_log.out" in lines


@pytest.mark.usefixtures("with_slurm")
def test_slurm_is_told_never_to_run_a_trial_a_second_time(tmp_path: Path) -> None:
    made = launcher(f"hydra.sweep.dir={tmp_path}")
    assert "#SBATCH --no-requeue" in script(made)
    assert made.executor._executor.max_num_timeout == 0


def test_where_slurm_is_not_installed_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="hydra/launcher=submitit: .*srun"):
        launcher(f"hydra.sweep.dir={tmp_path}")
