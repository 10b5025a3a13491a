"""Write checkpoints so that a reader never sees half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from flatfix.files import needing_room, replacing, sync
from flatfix.inference.decision import Decision
from flatfix.inference.package import sha256_of


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write to a temporary name, flush to the disk, then rename.

    Lightning's own `_atomic_save` can swallow a PermissionError and leave no file (Lightning issue 21800).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint; on any error the file that was there before stays as it is.

        Raises:
            UserError: when the disk is full.
        """
        room = needing_room("paths.run", "a checkpoint", "Make room, and go on with resume.from=auto.")
        with room, replacing(Path(path), durable=True) as partial, partial.open("wb") as file:
            _write(checkpoint, file)


def save_with_digest(checkpoint: dict[str, Any], folder: Path, stem: str) -> Path:
    """Save a checkpoint under a name that ends in the first 16 digits of its sha256, once it reads back as written.

    The name and the digest appear together, and outlast a loss of power. A process that is killed in the middle leaves
    no other trace than a hidden file that ends in `.partial`.

    Raises:
        OSError: when the disk is full, or gives back something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{uuid.uuid4().hex}.partial"
    try:
        with _Hashing(partial) as file:
            _write(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # read back from the disk rather than from memory; not on macOS
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        digest = file.digest.hexdigest()
        if sha256_of(partial) != digest:
            raise OSError(errno.EIO, "it reads back differently from how it was written")
        path = folder / f"{stem}-{digest[:16]}.ckpt"
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(folder)
    return path


def write_decision(path: Path, decision: Decision) -> None:
    """Write into a checkpoint how the classifier that it holds decides."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint["hyper_parameters"]["decision"] = decision.to_dict()
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def _write(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint to an open file.

    Raises:
        OSError: when that does not work.
    """
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # torch fails once more as it closes what it could not write
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


class _Hashing(BufferedWriter):
    """A file that knows the sha256 of what was written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path, "wb"))
        self.digest = hashlib.sha256()

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        return super().write(data)
