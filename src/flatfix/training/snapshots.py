"""Snapshots: the full state of a training, from which it goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from flatfix.console import complain
from flatfix.errors import UserError
from flatfix.files import replacing
from flatfix.inference.package import sha256_of
from flatfix.training.checkpoint_io import save_with_digest
from flatfix.training.interruption import Interrupted, deferring
from flatfix.training.module import TrainingModule
from flatfix.training.ranks import is_true_of_any

KEPT = 2
CHECKPOINTS = "checkpoints"  # the folder, below that of a run
BEST = "best.ckpt"  # beside the snapshots: the weights of the epoch that counts
PAUSE = 20  # an epoch's end is saved when at least so many times as long has passed as it took to save
KEY = "snapshot"  # what a checkpoint of Lightning's holds no place for
_NAME = re.compile(r"state-(\d{8,})-([0-9a-f]{16})\.ckpt")


def newest_intact(folder: Path) -> Path | None:
    """Return the newest snapshot in a folder that is as it was written; say which damaged ones are passed over."""
    for path in _newest_first(folder):
        if is_intact(path):
            return path
        complain(f"{path}: damaged; the snapshot before it counts.")
    return None


def is_intact(path: Path) -> bool:
    """Tell whether a file is a snapshot, and as it was written."""
    name = _NAME.fullmatch(path.name)
    try:
        return name is not None and sha256_of(path).startswith(name[2])
    except OSError:  # the disk does not give it back, or it is gone
        return False


def is_any(folder: Path) -> bool:
    """Tell whether a folder has a snapshot, each of which was intact when it was written."""
    return bool(_newest_first(folder))


def write(state: dict[str, Any], folder: Path, step: int) -> None:
    """Write a snapshot, keep beside it the best weights that it knows, and remove all but the last two.

    Raises:
        OSError: when the disk is full, or gives back something else; all older ones stay.
    """
    _keep_best(save_with_digest(state, folder, f"state-{step:08d}"))
    for path in _newest_first(folder)[KEPT:]:
        _remove(path)


class Snapshots(Checkpoint):
    """Write snapshots to `state-<step>-<digest>.ckpt`, and keep the last two.

    There is one every so many optimizer steps or minutes, one at the end of training, and one before training ends
    because of Ctrl-C or SIGTERM. There is one at the end of an epoch too, once its metrics are logged, unless epochs
    are so short that saving them would take more than a twentieth of the time. All are taken between two optimizer
    steps, none within a window of accumulated gradients. In validation nothing is learnt: a snapshot from there is that
    of the last training step, and the validation is done again.

    A later epoch may put other weights into `best.ckpt` and be lost with the process: those that a snapshot knows are
    kept beside it, under its name, and put back when training goes on from it.

    Of several processes the first writes, and its file holds what every other one needs.

    Args:
        folder: of the files.
        every_steps: optimizer steps from one to the next, or None.
        every_minutes: minutes from one to the next, or None.
    """

    def __init__(self, folder: Path, *, every_steps: int | None, every_minutes: float | None) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self._open = ExitStack()
        self._was_asked_to_stop: Callable[[], str | None] = lambda: None
        self._loaded: dict[str, Any] | None = None
        self._step = 0  # the last one that has ended
        self._newest = (0, True)  # the step of the newest snapshot, and whether its epoch has ended
        self._saved_at = 0.0
        self._took = 0.0  # seconds, to save it

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take what is restored when training starts.

        Raises:
            UserError: when the checkpoint is no snapshot, or that of another number of processes.
        """
        if not trainer.training:
            return
        state = checkpoint.get(KEY)
        if state is None:
            raise UserError(
                f"resume.from={trainer.ckpt_path}: holds weights, and not the state of a training. Choose a file "
                "state-*.ckpt, or resume.mode=finetune."
            )
        if len(state["ranks"]) != trainer.world_size:
            raise UserError(
                f"trainer.devices: {trainer.world_size} processes cannot go on with what {len(state['ranks'])} began. "
                "Start as many."
            )
        trainer.should_stop = state["should_stop"]
        self._loaded = state

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore what Lightning does not, and let signals wait for the end of a step from here on."""
        assert isinstance(pl_module, TrainingModule)
        self._was_asked_to_stop = self._open.enter_context(deferring())
        if self._loaded:
            self._newest = (trainer.global_step, self._loaded["has_epoch_ended"])
            own = self._loaded["ranks"][trainer.global_rank]
            if own["epoch"]:
                # Lightning asks for the loader before it restores: `estimated_stepping_batches` counts its batches.
                trainer.train_dataloader.load_state_dict(self._loaded["loader"])  # type: ignore[union-attr]
                pl_module.load_epoch_state(own["epoch"])
            _set_random_state(own["random"], pl_module.device)
            self._loaded = None
            _check_length(trainer)
        if trainer.is_global_zero:
            self._tidy(trainer.ckpt_path)
        self._step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end of the epoch before, whose metrics are logged by now."""
        is_time = time.monotonic() - self._saved_at >= PAUSE * self._took or self._was_asked_to_stop() is not None
        if is_true_of_any(is_time):
            if trainer.global_step:
                self._save(trainer, pl_module, has_epoch_ended=True)
            self._stop_if_asked(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save where it is time to, or where training is to stop."""
        if trainer.global_step == self._step:  # in a window of accumulated gradients
            return
        self._step = trainer.global_step
        if is_true_of_any(self._is_due() or self._was_asked_to_stop() is not None):
            self._save(trainer, pl_module, has_epoch_ended=False)
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save and stop where that was asked for."""
        if not is_true_of_any(self._was_asked_to_stop() is not None):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):  # has put the averaged weights in place of those that learn
                callback.on_validation_epoch_end(trainer, pl_module)
        self._save(trainer, pl_module, has_epoch_ended=False)
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end.

        Raises:
            UserError: when that does not work.
        """
        self._save(trainer, pl_module, has_epoch_ended=True, is_last=True)
        self._stop_if_asked(trainer)
        self._open.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let signals end the process at once again."""
        self._open.close()

    def _is_due(self) -> bool:
        by_steps = self.every_steps is not None and self._step % self.every_steps == 0
        by_time = self.every_minutes is not None and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        return by_steps or by_time

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        reason = self._was_asked_to_stop()
        if is_true_of_any(reason is not None):
            raise Interrupted(reason or "interrupted in another process")

    def _save(
        self, trainer: L.Trainer, module: L.LightningModule, *, has_epoch_ended: bool, is_last: bool = False
    ) -> None:
        assert isinstance(module, TrainingModule)
        if self._newest == (trainer.global_step, has_epoch_ended):
            return
        began = time.monotonic()
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        _straighten(checkpoint["loops"]["fit_loop"], has_epoch_ended, trainer.is_last_batch)
        own = {
            "random": _random_state(module.device),
            "epoch": None if has_epoch_ended else module.epoch_state(),
        }
        checkpoint[KEY] = {
            "should_stop": trainer.should_stop,
            "has_epoch_ended": has_epoch_ended,
            "loader": trainer.train_dataloader.state_dict(),  # type: ignore[union-attr]
            "ranks": _of_every_rank(trainer, own),
        }
        if trainer.is_global_zero:
            try:
                write(checkpoint, self.folder, trainer.global_step)
            except OSError as error:
                if is_last:
                    raise UserError(
                        f"paths.run: the end of the training cannot be saved in {self.folder} ({error.strerror}). "
                        "Make room there, and go on with resume.from=auto."
                    ) from error
                complain(f"step {trainer.global_step} is not saved: {error}. Training goes on; older snapshots stay.")
        self._newest = (trainer.global_step, has_epoch_ended)
        trainer.strategy.barrier("snapshot")
        self._saved_at = time.monotonic()
        self._took = self._saved_at - began

    def _tidy(self, loaded: str | Path | None) -> None:
        """Remove what a killed process left half-written, and what comes after the snapshot that training goes on with.

        Those later ones are damaged, or were passed over by whoever named an earlier one: they would be taken for what
        is now to come. The best weights become those of then.
        """
        for path in self.folder.glob(".*.partial"):
            path.unlink(missing_ok=True)
        found = [path.resolve() for path in _newest_first(self.folder)]
        start = Path(loaded).resolve() if loaded else None
        later = found if start is None else found[: found.index(start)] if start in found else []
        for path in later:
            _remove(path)
        if start in found:
            _restore_best(start)


def _newest_first(folder: Path) -> list[Path]:
    """Return the snapshots of a folder; of two of one step the one that was written later comes first."""
    named = [(match, path) for path in folder.glob("state-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    ranked = sorted(((int(match[1]), path.stat().st_mtime_ns, path) for match, path in named), reverse=True)
    return [path for _, _, path in ranked]


def _best_of(snapshot: Path) -> Path:
    """Return where the best weights are that a snapshot knows."""
    return snapshot.with_name(snapshot.name.replace("state-", "best-", 1))


def _keep_best(snapshot: Path) -> None:
    """Keep the best weights of now, which the next better ones replace; as a second name they take no room."""
    best = snapshot.with_name(BEST)
    if best.is_file():
        _link(best, _best_of(snapshot))


def _restore_best(snapshot: Path) -> None:
    """Put back the best weights that a snapshot knows, where there are others now."""
    best, known = snapshot.with_name(BEST), _best_of(snapshot)
    if not known.is_file():  # the process ended between the two: none better have come
        _keep_best(snapshot)
    elif not (best.is_file() and best.samefile(known)):
        with replacing(best) as partial:
            _link(known, partial)


def _link(path: Path, other: Path) -> None:
    """Give a file a second name, or copy it where the disk has no such thing."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _remove(snapshot: Path) -> None:
    _best_of(snapshot).unlink(missing_ok=True)  # first: nobody else would look for it
    snapshot.unlink(missing_ok=True)


def _check_length(trainer: L.Trainer) -> None:
    """Refuse a schedule whose state, which has its length, is that of a longer or shorter run."""
    here = int(trainer.estimated_stepping_batches)
    for config in trainer.lr_scheduler_configs:
        there = getattr(config.scheduler, "total_steps", here)
        if there != here:
            raise UserError(
                f"resume.from={trainer.ckpt_path}: its schedule takes {there:,} steps, and this run {here:,}. "
                "Set trainer.max_epochs, trainer.accumulate, dataset.batch_size and dataset.sample_fraction as they "
                "were, or set resume.mode=finetune, which takes the weights alone."
            )


def _straighten(fit_loop: dict[str, Any], has_epoch_ended: bool, is_last_batch: bool) -> None:
    """Let the counters of Lightning's loops say what has been done, so that it goes on with the rest.

    They are counted up around the hooks in which snapshots are taken. As they stand there, Lightning 2.6 would skip the
    validation that follows the last batch, and miscount the epochs after one that has ended.
    """
    if has_epoch_ended:  # the next one has been announced, or there is none
        for epochs in fit_loop["epoch_progress"].values():
            epochs["ready"] = epochs["completed"]
    elif is_last_batch:  # the batch has been counted, and the validation after it has begun, with nothing done
        for batches in (fit_loop["epoch_loop.batch_progress"][scope] for scope in ("total", "current")):
            batches["completed"] = batches["processed"]
        for batches in (fit_loop["epoch_loop.val_loop.batch_progress"][scope] for scope in ("total", "current")):
            batches.update(ready=1, started=1, processed=0, completed=0)


def _of_every_rank(trainer: L.Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return [own]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def _random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of what draws random numbers in this process, as plain values and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(),
    }


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])
