"""What a run records of itself before it trains: its parameters, its config, its code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flatfix
from flatfix.config.text import to_yaml
from flatfix.data.cache import Examples
from flatfix.data.manifest import Manifest
from flatfix.tracking.connection import redact
from flatfix.tracking.provenance import Provenance
from flatfix.tracking.run import Run

# What a run can change without coming to another result: where things are, what is told of it, how it is started.
INDIFFERENT = (
    "dataset.allow_duplicates",
    "dataset.cache_gigabytes",
    "dataset.offline",
    "dataset.on_bad_image",
    "dataset.publish",
    "dataset.source",
    "paths",
    "pruner",
    "registry",
    "report",
    "resume",
    "store",
    "sweep",
    "tracking",
    "trainer.checkpoint_every_minutes",
    "trainer.checkpoint_every_steps",
    "trainer.profile",
)
GIT_COMMIT = "git_commit"  # the tag, set when all else has been logged
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


def log_facts(run: Run, cfg: Mapping[str, Any], manifest: Manifest) -> str:
    """Log the named parameters, the flattened config, the config files and the state of the code; return its commit."""
    secrets = (cfg["tracking"]["uri"], cfg["sweep"]["storage"])
    cfg = without_password(cfg)
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
        "optimizer_type": optimizer_name(cfg["optimizer"]),
        "scheduler": cfg["scheduler"]["_target_"].rpartition(".")[2],
        "early_stopping_patience": early_stopping["patience"],
        "early_stopping_delta": early_stopping["delta"],
        "seed": cfg["seed"],
    }
    run.log_params({**dict(flattened(cfg)), **named})
    run.log_text(to_yaml(cfg), "config/resolved.yaml")
    overrides = Path(cfg["paths"]["run"]) / ".hydra" / "overrides.yaml"
    if overrides.is_file():
        text = overrides.read_text(encoding="utf-8")
        for uri in secrets:
            text = text.replace(uri, redact(uri))
        run.log_text(text, "config/overrides.yaml")
    return log_code(run, "code")


def log_code(run: Run, folder: str) -> str:
    """Log the state of the code among the run's artifacts, and return its commit."""
    provenance = Provenance.collect(Path(flatfix.__file__).parent, PACKAGES)
    run.log_dict(provenance.summary(), f"{folder}/provenance.json")
    if provenance.diff:
        run.log_text(provenance.diff, f"{folder}/uncommitted.diff")
    commit = provenance.commit or "unknown"
    run.set_tags({GIT_COMMIT: commit, "git_dirty": str(provenance.is_dirty).lower()})
    return commit


def deciding(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, by their dotted paths, that decide what a run comes to."""
    return {name: value for name, value in flattened(cfg) if not is_below(name, INDIFFERENT)}


def config_digest(cfg: Mapping[str, Any]) -> str:
    """Return what two runs have in common whose configs come to the same result."""
    return hashlib.sha256(json.dumps(deciding(cfg), sort_keys=True).encode()).hexdigest()


def without_password(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as it may be shown."""
    tracking, sweep = cfg["tracking"], cfg["sweep"]
    return {
        **cfg,
        "tracking": {**tracking, "uri": redact(tracking["uri"])},
        "sweep": {**sweep, "storage": redact(sweep["storage"])},
    }


def card(
    cfg: Mapping[str, Any],
    manifest: Manifest,
    examples: Mapping[str, Examples],
    run_id: str,
    origin: str,
    precision: str,
    best_epoch: int,
) -> dict[str, dict[str, str]]:
    """Return what a reader of the report should know of the run and of its data, by section."""
    counts = ", ".join(f"{len(each):,} {split}" for split, each in examples.items())
    fold = cfg["dataset"]["fold"]
    run = {
        "model": origin,
        "optimizer": f"{optimizer_name(cfg['optimizer'])}, learning rate {cfg['optimizer'].get('lr', 'its own')}",
        "schedule": cfg["scheduler"]["_target_"].rpartition(".")[2],
        "loss": cfg["loss"]["_target_"].rpartition(".")[2],
        "augmentation": cfg["augment"]["_target_"].rpartition(".")[2],
        "batch": f"{cfg['dataset']['batch_size']} pictures of {cfg['dataset']['image_size']} px",
        "epochs": f"at most {cfg['trainer']['max_epochs']}; the best by {cfg['monitor']} is {best_epoch + 1}",
        "precision": precision,
        "seed": str(cfg["seed"]),
        "MLflow run": run_id,
    }
    dataset = {
        "version": f"{manifest.name} {manifest.version}",
        "pictures": counts,
        "classes": ", ".join(manifest.classes),
        "source": str(manifest.source.get("source.kind")),
        "published": manifest.created,
        "digest": manifest.digest,
    }
    if fold is not None:
        dataset["fold"] = f"{fold} of {cfg['dataset']['num_folds']} is the validation split"
    if manifest.findings:
        dataset["findings"] = "; ".join(manifest.findings)
    return {"Run": run, "Dataset": dataset}


def optimizer_name(optimizer: Mapping[str, Any]) -> str:
    """Return the name of the optimizer that a config node describes: timm's where timm makes it, else its class's."""
    name: str = optimizer.get("opt") or optimizer["_target_"].rpartition(".")[2]
    return name


def is_below(name: str, nodes: tuple[str, ...]) -> bool:
    """Tell whether the dotted path of an option is that of one of some nodes, or lies below it."""
    return any(f"{name}.".startswith(f"{node}.") for node in nodes)


def flattened(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf of a nested mapping under its dotted path."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
