"""The pictures that a run learns from and is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatfix.data.cache import Examples, decoded, sample
from flatfix.data.splits import Fold
from flatfix.data.store import Store, open_store
from flatfix.data.version import DatasetVersion


def open_store_of(cfg: Mapping[str, Any]) -> Store:
    """Open the store that a config names."""
    dataset = cfg["dataset"]
    return open_store(
        cfg["store"], cfg["paths"]["cache"], gigabytes=dataset["cache_gigabytes"], is_offline=dataset["offline"]
    )


def pictures_of(cfg: Mapping[str, Any], version: DatasetVersion, split: str) -> Examples:
    """Decode a split, and keep the part that the config asks for."""
    dataset, trainer = cfg["dataset"], cfg["trainer"]
    examples = decoded(
        version,
        split,
        image_size=dataset["image_size"],
        resize=dataset["resize"],
        cache_dir=Path(cfg["paths"]["cache"]),
        fold=Fold.chosen(dataset["fold"], dataset["num_folds"]),
        gigabytes=dataset["decoded_gigabytes"],
    )
    if split == "train":
        examples = sample(examples, dataset["sample_fraction"], cfg["seed"])
    limit = 1 if trainer["overfit_below"] else trainer["limit_batches"]
    if limit:
        examples = sample(examples, min(1.0, limit * dataset["batch_size"] / len(examples)), cfg["seed"])
    return examples
