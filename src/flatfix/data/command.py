"""What `publish.py` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatfix.config.instantiate import build
from flatfix.console import say, table
from flatfix.data.manifest import Manifest
from flatfix.data.publish import publish
from flatfix.data.splits import SPLITS, SplitRule
from flatfix.data.store import LocalStore
from flatfix.data.version import is_held, list_versions
from flatfix.errors import UserError


def run(cfg: Mapping[str, Any]) -> None:
    """Publish the configured source, or list the versions of the store.

    Raises:
        UserError: naming the option that does not work.
    """
    store = LocalStore(cfg["store"]["uri"])
    if cfg["action"] == "list":
        show(list_versions(store))
        return
    dataset = cfg["dataset"]
    if dataset["source"] is None:
        raise UserError(
            "dataset.source: nothing to publish from. Choose a dataset with a source, such as dataset=folder."
        )
    was_held = is_held(store, dataset["name"], dataset["version"])
    manifest = publish(
        build(dataset["source"], "dataset.source"),
        store,
        name=dataset["name"],
        version=dataset["version"],
        rule=SplitRule(**dataset["split"]),
        on_bad_image=dataset["on_bad_image"],
        shard_bytes=cfg["shard_megabytes"] << 20,
    )
    say("already published, with the same content:" if was_held else "published:")
    show([manifest])
    for finding in manifest.findings:
        say(f"finding: {finding}")


def show(manifests: list[Manifest]) -> None:
    """Print one line a version."""
    if not manifests:
        say("the store holds no version yet")
        return
    rows = [
        [
            f"{manifest.name}/{manifest.version}",
            *(f"{manifest.num(split):,}" for split in SPLITS),
            f"{len(manifest.classes)}",
            f"{sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f}",
            manifest.created[:16],
            manifest.digest[:12],
        ]
        for manifest in manifests
    ]
    table(["dataset/version", *SPLITS, "classes", "MB", "created (UTC)", "digest"], rows)
