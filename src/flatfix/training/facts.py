"""What a run records of itself before it trains: its parameters, its config, its code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flatfix
from flatfix.config.text import to_yaml
from flatfix.data.manifest import Manifest
from flatfix.tracking.connection import redact
from flatfix.tracking.provenance import Provenance
from flatfix.tracking.run import Run

PACKAGES = (
    "flatfix",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "torchmetrics",
    "mlflow",
    "hydra-core",
    "numpy",
    "Pillow",
)


def log_facts(run: Run, cfg: Mapping[str, Any], manifest: Manifest) -> None:
    """Log the named parameters, the flattened config, the config files and the state of the code."""
    uri = cfg["tracking"]["uri"]
    cfg = {**cfg, "tracking": {**cfg["tracking"], "uri": redact(uri)}}
    early_stopping = cfg["callbacks"]["early_stopping"]
    named = {
        "model_name": cfg["model"]["name"],
        "model_version": flatfix.__version__,
        "dataset_name": manifest.name,
        "dataset_version": manifest.version,
        "dataset_digest": manifest.digest,
        "epochs": cfg["trainer"]["max_epochs"],
        "learning_rate": cfg["optimizer"].get("lr"),
        "batch_size": cfg["dataset"]["batch_size"],
        "optimizer_type": cfg["optimizer"]["_target_"].rpartition(".")[2],
        "scheduler": cfg["scheduler"]["_target_"].rpartition(".")[2],
        "early_stopping_patience": early_stopping["patience"],
        "early_stopping_delta": early_stopping["delta"],
        "seed": cfg["seed"],
    }
    run.log_params({**dict(flattened(cfg)), **named})
    run.log_text(to_yaml(cfg), "config/resolved.yaml")
    overrides = Path(cfg["paths"]["run"]) / ".hydra" / "overrides.yaml"
    if overrides.is_file():
        run.log_text(overrides.read_text(encoding="utf-8").replace(uri, redact(uri)), "config/overrides.yaml")
    provenance = Provenance.collect(Path(flatfix.__file__).parent, PACKAGES)
    run.log_dict(provenance.summary(), "code/provenance.json")
    run.set_tags({"git_commit": provenance.commit or "unknown", "git_dirty": str(provenance.is_dirty).lower()})
    if provenance.diff:
        run.log_text(provenance.diff, "code/uncommitted.diff")


def flattened(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf of a nested mapping under its dotted path."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
