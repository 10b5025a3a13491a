from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flatfix.errors import UserError
from flatfix.inference.decision import Decision
from flatfix.models.classifier import ClassifierSpec
from flatfix.training.checkpoint_io import AtomicCheckpointIO, write_decision
from tests.helpers.models import make_classifier
from tests.helpers.small_disk import mounted


def test_a_checkpoint_survives_the_round_trip_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 3, "weights": torch.arange(4)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.arange(4))
    assert [each.name for each in path.parent.iterdir()] == ["best.ckpt"]


def test_a_failed_write_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    class Unpicklable:
        def __reduce__(self) -> str:
            raise RuntimeError("no space left")

    path = tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(RuntimeError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100), "bad": Unpicklable()}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["best.ckpt"]


def test_a_full_disk_is_named_with_its_option(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", megabytes=1) as disk:
        with pytest.raises(UserError, match=r"paths\.run: no space left for a checkpoint\. Make room"):
            AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1 << 20)}, disk / "best.ckpt")
        assert list(disk.iterdir()) == []


def test_a_decision_is_written_into_a_checkpoint_and_the_rest_stays(tmp_path: Path) -> None:
    path, spec = tmp_path / "best.ckpt", make_classifier().spec
    AtomicCheckpointIO().save_checkpoint({"hyper_parameters": spec.to_dict(), "weights": torch.arange(4)}, path)
    decision = Decision(temperature=1.5, positive=1, threshold=0.25, review=(0.2, 0.4), rule="recall at least 0.95")
    write_decision(path, decision)
    content = torch.load(path, weights_only=True)
    assert ClassifierSpec.from_dict(content["hyper_parameters"]).decision == decision
    assert torch.equal(content["weights"], torch.arange(4))
