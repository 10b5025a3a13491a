from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flatfix.data.publish import publish
from flatfix.data.splits import SplitRule
from flatfix.data.store import LocalStore
from tests.helpers.images import MemorySource, records

ROOT = Path(__file__).parents[2]

# Lightning starts the second rank by running the script once more.
SCRIPT = """
import json, sys
from pathlib import Path

import lightning as L
import torch

from flatfix.data.cache import decoded
from flatfix.data.datamodule import ImageDataModule
from flatfix.data.store import LocalStore
from flatfix.data.version import open_version


class Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(192), torch.nn.Linear(192, 2))
        self.rows = {"train": [], "val": []}

    def training_step(self, batch, batch_index):
        self.rows["train"].append(batch.indices.tolist())
        return torch.nn.functional.cross_entropy(self.layers(batch.inputs.float()), batch.labels)

    def validation_step(self, batch, batch_index):
        self.rows["val"].append(batch.indices.tolist())
        self.layers(batch.inputs.float())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-6)


folder = Path(sys.argv[1])
version = open_version(LocalStore(folder / "store"), "pets", "v1")
train, val = (
    decoded(version, split, image_size=8, resize="squash", cache_dir=folder / "cache", gigabytes=0)
    for split in ("train", "val")
)
module = Recorder()
trainer = L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
)
trainer.fit(module, datamodule=ImageDataModule(train, val, val, batch_size=6, seed=1))
(folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(module.rows))
"""


@pytest.mark.slow
def test_two_processes_train_on_disjoint_parts_and_evaluate_every_picture_once(tmp_path: Path) -> None:
    rule = SplitRule(val_fraction=0.25, test_fraction=0)
    publish(
        MemorySource(records(52)),
        LocalStore(tmp_path / "store"),
        name="pets",
        version="v1",
        rule=rule,
        shard_bytes=9_000,
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr

    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for epoch in range(2):
        # 39 pictures: 19 a rank, of which 3 whole batches are used
        train = [rows["train"][3 * epoch : 3 * epoch + 3] for rows in ranks]
        assert [[len(batch) for batch in batches] for batches in train] == [[6, 6, 6]] * 2
        assert len({row for batches in train for batch in batches for row in batch}) == 36
        # 13 pictures: 7 and 6, in two batches each, though one would do for 6
        val = [rows["val"][2 * epoch : 2 * epoch + 2] for rows in ranks]
        assert [[len(batch) for batch in batches] for batches in val] == [[6, 1], [3, 3]]
        assert [row for batches in val for batch in batches for row in batch] == list(range(13))
    assert [len(rows["train"]) for rows in ranks] == [6, 6]
    assert ranks[0]["train"][:3] != ranks[0]["train"][3:]
