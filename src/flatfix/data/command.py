"""What `publish.py` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flatfix.config.exit_codes import ExitCode
from flatfix.config.instantiate import build
from flatfix.console import complain, say, table
from flatfix.data.derive import DerivedSource, rule_of
from flatfix.data.diff import CHANGES, diff
from flatfix.data.manifest import Manifest
from flatfix.data.publish import publish
from flatfix.data.pull import pull
from flatfix.data.sources.base import Source
from flatfix.data.splits import SPLITS, SplitRule
from flatfix.data.store import Store, open_store
from flatfix.data.verify import verify
from flatfix.data.version import is_held, list_versions, open_version
from flatfix.errors import UserError, enumerated

Config = Mapping[str, Any]

# The options that one action needs and no other reads.
OPTIONS_OF = {"diff": ("against",), "pull": ("to",), "derive": ("from", "labels")}


def run(cfg: Config) -> ExitCode:
    """Do what `action` says with the store.

    Returns:
        `NO` where a version is found damaged, or cannot be read.

    Raises:
        UserError: naming the option that does not work.
    """
    _check_options(cfg)
    store, name, version = _open(cfg, cfg["paths"]["cache"]), cfg["dataset"]["name"], cfg["dataset"]["version"]
    match cfg["action"]:
        case "publish":
            _publish(cfg, store)
        case "list":
            return _list_all(store)
        case "show":
            _show(open_version(store, name, version).manifest)
        case "verify":
            return _verify(cfg, store)
        case "diff":
            _diff(store, name, cfg["against"], version)
        case "pull":
            pull(open_version(store, name, version), Path(cfg["to"]).expanduser().absolute())
        case "derive":
            _derive(cfg, store)
    return ExitCode.DONE


def _check_options(cfg: Config) -> None:
    for action, options in OPTIONS_OF.items():
        for option in options:
            if action == cfg["action"] and cfg[option] is None:
                raise UserError(f"{option}: action={action} needs a value.")
            if action != cfg["action"] and cfg[option] is not None:
                raise UserError(f"{option}={cfg[option]}: only action={action} reads it. Leave it out.")


def _open(cfg: Config, cache: str | Path) -> Store:
    dataset = cfg["dataset"]
    return open_store(cfg["store"], cache, gigabytes=dataset["cache_gigabytes"], is_offline=dataset["offline"])


def _publish(cfg: Config, store: Store) -> None:
    dataset = cfg["dataset"]
    if dataset["source"] is None:
        raise UserError(
            "dataset.source: nothing to publish from. Choose a dataset with a source, such as dataset=folder."
        )
    _freeze(cfg, store, build(dataset["source"], "dataset.source"), SplitRule(**dataset["split"]))


def _derive(cfg: Config, store: Store) -> None:
    parent = open_version(store, cfg["dataset"]["name"], cfg["from"])
    _freeze(cfg, store, DerivedSource(parent, cfg["labels"]), rule_of(parent), parent=cfg["from"])


def _freeze(cfg: Config, store: Store, source: Source, rule: SplitRule, parent: str | None = None) -> None:
    dataset = cfg["dataset"]
    was_held = is_held(store, dataset["name"], dataset["version"])
    manifest = publish(
        source,
        store,
        name=dataset["name"],
        version=dataset["version"],
        rule=rule,
        on_bad_image=dataset["on_bad_image"],
        allow_duplicates=dataset["allow_duplicates"],
        shard_bytes=cfg["shard_megabytes"] << 20,
        parent=parent,
    )
    say("already published, with the same content:" if was_held else "published:")
    _list([manifest])
    _tell_findings(manifest)


def _verify(cfg: Config, store: Store) -> ExitCode:
    """Hash what the store holds, not a copy of it in the cache."""
    dataset = cfg["dataset"]
    if dataset["offline"] and not store.is_local:
        raise UserError("dataset.offline=true: action=verify reads the store itself. Leave it out.")
    with TemporaryDirectory(prefix="flatfix-verify-") as cache:
        store = open_store(cfg["store"], cache, gigabytes=0)  # each file goes when the next one comes
        damage = verify(store, dataset["name"], dataset["version"])
    for what in damage:
        complain(f"damaged: {what}")
    if damage:
        return ExitCode.NO
    say(f"{dataset['name']}/{dataset['version']} is whole: every file is what was published")
    return ExitCode.DONE


def _list_all(store: Store) -> ExitCode:
    """Print every version, and what is wrong with those that cannot be read."""
    unreadable: list[str] = []
    manifests = list_versions(store, tell=unreadable.append)
    for what in unreadable:
        complain(what)
    if manifests or not unreadable:
        _list(manifests)
    return ExitCode.NO if unreadable else ExitCode.DONE


def _list(manifests: list[Manifest]) -> None:
    """Print one line a version."""
    if not manifests:
        say("the store holds no version yet")
        return
    rows = [
        [
            f"{manifest.name}/{manifest.version}",
            *(f"{manifest.num(split):,}" for split in SPLITS),
            f"{len(manifest.classes)}",
            _megabytes(manifest),
            manifest.created[:16],
            manifest.digest[:12],
        ]
        for manifest in manifests
    ]
    table(["dataset/version", *SPLITS, "classes", "MB", "created (UTC)", "digest"], rows)


def _show(manifest: Manifest) -> None:
    """Print all that the manifest of a version tells."""
    say(f"{manifest.name}/{manifest.version}")
    facts = {
        "digest": manifest.digest,
        "created (UTC)": manifest.created,
        "parent": manifest.parent or "none",
        "shards": f"{len(manifest.shards)} ({_megabytes(manifest)} MB)",
        "mean, std": "  ".join(" ".join(f"{value:.4f}" for value in of) for of in (manifest.mean, manifest.std)),
        **manifest.source,
    }
    width = max(map(len, facts))
    for key, value in facts.items():
        say(f"  {key.ljust(width)}  {value}")
    counts = [[label, *(f"{manifest.splits[split][label]:,}" for split in SPLITS)] for label in manifest.classes]
    table(["class", *SPLITS], [*counts, ["all", *(f"{manifest.num(split):,}" for split in SPLITS)]])
    _tell_findings(manifest)


def _diff(store: Store, name: str, old_version: str, new_version: str) -> None:
    """Print how the new version differs from the old one."""
    old, new = (open_version(store, name, version) for version in (old_version, new_version))
    found = diff(old, new)
    say(f"from {name}/{old_version} to {name}/{new_version}:")
    for what, pictures in (
        ("added", found.added),
        ("removed", found.removed),
        *((words, found.changed[column]) for column, words in CHANGES.items()),
    ):
        say(f"{what}: {len(pictures):,}{enumerated(pictures)}")
    labels = list(dict.fromkeys([*old.manifest.classes, *new.manifest.classes]))
    splits = old.manifest.splits, new.manifest.splits
    rows = [[label, *(_step(*(of[split].get(label, 0) for of in splits)) for split in SPLITS)] for label in labels]
    table(
        ["class", *SPLITS],
        [*rows, ["all", *(_step(old.manifest.num(each), new.manifest.num(each)) for each in SPLITS)]],
    )


def _step(before: int, after: int) -> str:
    return f"{after:,}" if before == after else f"{before:,} -> {after:,}"


def _megabytes(manifest: Manifest) -> str:
    return f"{sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f}"


def _tell_findings(manifest: Manifest) -> None:
    for finding in manifest.findings:
        say(f"finding: {finding}")
