from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra

from flatfix.config import resolvers
from flatfix.config.options import TRAIN
from flatfix.config.schema import Schema, validate

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
# A whole run in about a second: without bounds none qualifies, and no package is made.
TINY = (
    "dataset=tires",
    "dataset.source.num_pictures=160",
    "dataset.source.size=32",
    "dataset.image_size=32",
    "dataset.batch_size=16",
    "trainer.max_epochs=2",
    "trainer.precision=32",
    "tracking.system_metrics=false",
    "report=false",
    "callbacks.qualify.min_accuracy=null",
    "model=cnn",
)


def compose_train(output: Path, *overrides: str) -> dict[str, Any]:
    """Compose and validate what `python train.py <overrides>` would, writing below `output`."""
    return compose("train", TRAIN, output, f"paths.run={output}/runs/test", *overrides)


def compose(entry: str, schema: Schema, output: Path, *overrides: str) -> dict[str, Any]:
    """Compose and validate what `python <entry>.py <overrides>` would, writing below `output`."""
    resolvers.register()
    words = [f"paths.output={output}", f"paths.run={output}/none", *overrides]
    with hydra.initialize_config_dir(str(CONF)):
        cfg = hydra.compose(entry, overrides=words)
    return validate(cfg, schema, words)
