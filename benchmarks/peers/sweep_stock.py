"""Replayed jobs under hydra-optuna-sweeper and hydra-joblib-launcher as they come: a Hydra application of its own."""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from benchmarks.peers.replay import replay


@hydra.main(config_path=None)
def main(cfg: DictConfig) -> float:
    return replay(HydraConfig.get().job.num, cfg.parameter)


if __name__ == "__main__":
    main()
