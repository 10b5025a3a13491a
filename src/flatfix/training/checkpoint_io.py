"""Write checkpoints so that a reader never sees half of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from flatfix.files import replacing
from flatfix.inference.decision import Decision


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write to a temporary name, flush to the disk, then rename.

    Lightning's own `_atomic_save` can swallow a PermissionError and leave no file (Lightning issue 21800).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint; on any error the file that was there before stays as it is."""
        with replacing(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def write_decision(path: Path, decision: Decision) -> None:
    """Write into a checkpoint how the classifier that it holds decides."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint["hyper_parameters"]["decision"] = decision.to_dict()
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
