from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flatfix.training.checkpoint_io import AtomicCheckpointIO


def test_a_checkpoint_survives_the_round_trip_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 3, "weights": torch.arange(4)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.arange(4))
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


def test_a_failed_write_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    class Unpicklable:
        def __reduce__(self) -> str:
            raise RuntimeError("no space left")

    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(RuntimeError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100), "bad": Unpicklable()}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
