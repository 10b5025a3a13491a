from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flatfix.data.cache import decoded
from flatfix.data.datamodule import BatchLoader
from flatfix.data.publish import publish
from flatfix.data.splits import SplitRule
from flatfix.data.store import open_store
from flatfix.data.version import open_version
from flatfix.evaluation import predictions
from flatfix.inference.decode import load
from flatfix.training.result import RunResult
from tests.helpers.images import MemorySource, records
from tests.helpers.s3_server import S3Server

Train = Callable[..., RunResult]


def test_a_run_that_decodes_when_it_reads_has_the_outcome_of_one_that_decoded_before(
    run_tiny: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tires fill one shard, so that both train in the same order."""
    options = ["report=true", "augment=trivial", "dataset.sampler=balanced"]
    streamed, decoded = (
        run_tiny(*options, f"dataset.decoded_gigabytes={gigabytes}", f"paths.cache={tmp_path / name}", name=name)
        for name, gigabytes in (("streamed", "0"), ("decoded", "null"))
    )

    assert "train: decoded when read" in capsys.readouterr().out
    assert not list((tmp_path / "streamed").glob("cache/*.npy"))
    assert (streamed.num_epochs, streamed.test) == (decoded.num_epochs, decoded.test)
    for name in ("validation", "predictions"):
        tables = [predictions.read(Path(run.folder) / "evaluation" / f"{name}.parquet") for run in (streamed, decoded)]
        assert tables[0].ids == tables[1].ids
        np.testing.assert_array_equal(tables[0].labels, tables[1].labels)
        np.testing.assert_array_equal(tables[0].probabilities, tables[1].probabilities)


@pytest.mark.service
def test_a_version_that_is_larger_than_the_cache_is_read_from_s3_in_every_epoch(
    s3_server: S3Server, tmp_path: Path
) -> None:
    limit = 100_000
    options = {"uri": f"s3://pictures/{tmp_path.name}", "endpoint_url": s3_server.endpoint, "region": None}
    store = open_store(options, tmp_path, gigabytes=limit / 1e9)
    source, rule = MemorySource(records(200)), SplitRule(val_fraction=0, test_fraction=0)
    manifest = publish(source, store, name="pets", version="v1", rule=rule, shard_bytes=25_000)
    assert sum(shard.bytes for shard in manifest.shards) > 5 * limit
    expected = {record.id: load(source.read(record), 16, "squash") for record in source.records()}

    version = open_version(store, "pets", "v1")
    examples = decoded(version, "train", image_size=16, resize="squash", cache_dir=tmp_path, gigabytes=0)
    loader = BatchLoader(examples, 8, is_training=True)
    for epoch in range(2):
        loader.set_epoch(epoch)
        seen = []
        for batch in loader:
            for row, pixels in zip(batch.indices.tolist(), batch.inputs.numpy(), strict=True):
                np.testing.assert_array_equal(pixels, expected[examples.ids[row]])
                seen.append(row)
        assert sorted(seen) == list(range(200))
        assert sum(path.stat().st_size for path in (tmp_path / "blobs").glob("[!.]*")) < 2 * limit
