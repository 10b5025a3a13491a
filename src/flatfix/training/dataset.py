"""The dataset of a run: its store, its version, what is looked for, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatfix.console import say
from flatfix.data.cache import Examples, counts, decoded, sample
from flatfix.data.publish import resolve
from flatfix.data.splits import Fold
from flatfix.data.store import Store, open_store
from flatfix.data.version import DatasetVersion, is_held, open_version
from flatfix.errors import UserError, one_of
from flatfix.evaluation import threshold
from flatfix.training.plan import Plan

Config = Mapping[str, Any]


def open_store_of(cfg: Config) -> Store:
    """Open the store that a config names."""
    dataset = cfg["dataset"]
    return open_store(
        cfg["store"], cfg["paths"]["cache"], gigabytes=dataset["cache_gigabytes"], is_offline=dataset["offline"]
    )


def held_digest(cfg: Config, store: Store) -> str | None:
    """Return the digest of the version that a config names, or None for one that is not held yet."""
    name, version = cfg["dataset"]["name"], cfg["dataset"]["version"]
    if not is_held(store, name, version):
        return None
    return open_version(store, name, version).manifest.digest


def open_dataset(cfg: Config, plan: Plan, store: Store) -> DatasetVersion:
    """Open the version that a config names, published first where there is only a source; say what it is."""
    dataset = cfg["dataset"]
    if plan.source and not is_held(store, dataset["name"], dataset["version"]):
        positive_index(cfg, plan.source.classes)  # known now, not after the publishing
    version = resolve(
        store,
        name=dataset["name"],
        version=dataset["version"],
        source=plan.source,
        publish=dataset["publish"],
        rule=plan.rule,
        on_bad_image=dataset["on_bad_image"],
        allow_duplicates=dataset["allow_duplicates"],
    )
    manifest = version.manifest
    num_pictures = {split: sum(of_class.values()) for split, of_class in counts(version, plan.fold).items()}
    sizes = ", ".join(f"{num:,} {split}" for split, num in num_pictures.items())
    size = f"{sizes}; {len(manifest.classes)} classes; digest {manifest.digest[:12]}"
    say(f"dataset: {manifest.name} {manifest.version} ({size})")
    for finding in manifest.findings:
        say(f"finding: {finding}")
    return version


def positive_index(cfg: Config, classes: tuple[str, ...]) -> int | None:
    """Return the index of the class that is looked for, once what depends on the classes is found to be right."""
    positive_class = cfg["dataset"]["positive_class"]
    threshold.check(cfg["decision"], len(classes))
    if len(classes) != 2:
        if positive_class is not None:
            raise UserError(
                f"dataset.positive_class={positive_class}: means nothing with {len(classes)} classes, whose metrics "
                "are macro averages. Set it to null."
            )
        return None
    if positive_class is None:
        raise UserError(
            f"dataset.positive_class: required with two classes. Choose the one to find: {' or '.join(classes)}."
        )
    return classes.index(one_of("dataset.positive_class", positive_class, classes))


def pictures_of(cfg: Config, version: DatasetVersion, split: str) -> Examples:
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
