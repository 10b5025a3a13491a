from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import nn

from flatfix.data.datamodule import ImageDataModule
from flatfix.errors import UserError
from flatfix.files import replacing
from flatfix.training import schedulers, snapshots
from flatfix.training.augment import Inspection
from flatfix.training.averaging import MovingAverage
from flatfix.training.callbacks import BestEpoch, EarlyStopping, EpochProgress
from flatfix.training.interruption import Interrupted
from flatfix.training.quiet import quieten
from flatfix.training.snapshots import Snapshots, is_intact, newest_intact
from tests.helpers.fit import examples
from tests.helpers.models import make_classifier, make_module
from tests.helpers.small_disk import mounted

SPLITS = [examples(count, name) for name, count in (("train", 27), ("val", 12), ("test", 12))]  # 3 and 2 batches
NUM_EPOCHS, NUM_STEPS = 2, 6
COSINE = partial(schedulers.cosine, warmup_epochs=0.5)


class Rows(Logger):
    """Keep what is logged, but for the speed."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, str, float]] = []

    name = version = "rows"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        kept = metrics.keys() - {"epoch", "images_per_second"}
        self.logged += [(int(metrics["epoch"]), name, metrics[name]) for name in sorted(kept)]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class At(L.Callback):
    """Do something once, in a hook after so many steps; a hook of validation waits for its second batch."""

    def __init__(self, hook: str, step: int, act: Callable[[], None]) -> None:
        self.is_done = False

        def look(trainer: L.Trainer, *args: Any) -> None:
            is_there = trainer.global_step == step and (hook != "on_validation_batch_start" or args[2] == 1)
            if is_there and not self.is_done:
                self.is_done = True
                act()

        setattr(self, hook, look)


class Died(BaseException):
    """Stands for SIGKILL, of which the files know as much."""


def die() -> None:
    raise Died


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class Run:
    """A training from a folder's newest snapshot, with everything in it that draws, averages or counts."""

    def __init__(
        self,
        folder: Path,
        *callbacks: L.Callback,
        start: Path | None = None,
        seed: int = 0,
        every_steps: int | None = None,
        schedule: Callable[..., Any] = COSINE,
        **options: Any,
    ) -> None:
        self.folder = folder
        quieten()
        L.seed_everything(seed, verbose=False)
        classifier = make_classifier()
        classifier.head = nn.Sequential(nn.Dropout(0.5), classifier.head)
        self.module = make_module(
            classifier,
            augment=Inspection(),
            optimizer=partial(torch.optim.AdamW, lr=1e-3),
            scheduler=schedule,
        )
        checkpoint = ModelCheckpoint(
            folder, "best", "val/loss", save_on_train_epoch_end=False, enable_version_counter=False
        )
        self.best = BestEpoch(checkpoint, (), stop_when_qualified=False)
        self.rows = Rows()
        self.trainer = L.Trainer(
            accelerator="cpu",
            logger=self.rows,
            callbacks=[
                *callbacks,
                MovingAverage(0.9),
                checkpoint,
                self.best,
                EarlyStopping(patience=9, delta=0),
                EpochProgress("accuracy"),
                Snapshots(folder, every_steps=every_steps, every_minutes=None),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=1.0,
            **{"max_epochs": NUM_EPOCHS, **options},
        )
        try:
            data = ImageDataModule(*SPLITS, batch_size=9, seed=seed)
            start = start or newest_intact(folder)
            self.trainer.fit(self.module, datamodule=data, ckpt_path=start, weights_only=True)
            self.ended_by = ""
        except (Interrupted, Died) as end:
            self.ended_by = str(end) or "death"

    def outcome(self) -> tuple[dict[str, list[float]], int, dict[str, float], int]:
        weights = {name: value.tolist() for name, value in self.module.state_dict().items()}
        return weights, self.best.epoch, self.best.metrics, self.trainer.current_epoch


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PAUSE", 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("whole"))


def check_that_it_went_on(before: Run, after: Run, whole: Run) -> None:
    assert after.outcome() == whole.outcome()
    assert set(before.rows.logged + after.rows.logged) == set(whole.rows.logged)


@pytest.mark.parametrize(
    ("hook", "step", "saved"),
    [
        ("on_train_batch_start", 4, 5),
        pytest.param("on_train_batch_start", 2, 3, marks=pytest.mark.slow),  # the last of the epoch
        ("on_validation_batch_start", 3, 3),
        ("on_train_epoch_end", 3, 3),
        pytest.param("on_train_epoch_end", NUM_STEPS, NUM_STEPS, marks=pytest.mark.slow),
    ],
)
def test_a_signal_lets_the_step_end_and_training_goes_on_as_if_there_had_been_none(
    hook: str, step: int, saved: int, whole: Run, tmp_path: Path
) -> None:
    before = Run(tmp_path, At(hook, step, send(signal.SIGTERM)))
    newest = newest_intact(tmp_path)
    after = Run(tmp_path)

    assert before.ended_by == "interrupted by SIGTERM"
    assert newest and newest.name.startswith(f"state-{saved:08d}-")
    check_that_it_went_on(before, after, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "steps_per_epoch"), [(1, 3), (2, 2)])
def test_training_that_died_at_any_step_goes_on_as_if_it_had_not(
    accumulate: int, steps_per_epoch: int, tmp_path: Path
) -> None:
    options = {"accumulate_grad_batches": accumulate, "every_steps": 1}
    whole = Run(tmp_path / "whole", **options)
    num_steps = NUM_EPOCHS * steps_per_epoch
    assert whole.trainer.global_step == num_steps
    places = [("on_train_batch_start", step) for step in range(1, num_steps)]
    for step in range(steps_per_epoch, num_steps + 1, steps_per_epoch):
        places += [(hook, step) for hook in ("on_validation_batch_start", "on_validation_end", "on_train_epoch_end")]
    for hook, step in places:
        folder = tmp_path / f"{hook}-{step}"
        before = Run(folder, At(hook, step, die), **options)
        assert before.ended_by == "death"
        check_that_it_went_on(before, Run(folder, **options), whole)

    assert Run(tmp_path / "other", seed=1, **options).outcome()[0] != whole.outcome()[0]


def test_training_that_has_ended_stays_so(whole: Run) -> None:
    again = Run(whole.folder)
    assert again.rows.logged == []
    assert (again.best.epoch, again.best.metrics) == (whole.best.epoch, whole.best.metrics)
    assert again.trainer.current_epoch == NUM_EPOCHS


def test_training_that_was_stopped_early_stays_so(tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True

    Run(tmp_path, Stop())
    again = Run(tmp_path)
    assert (again.rows.logged, again.trainer.current_epoch) == ([], 1)


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_the_last_two_are_kept_and_a_damaged_one_is_passed_over_until_training_goes_on(
    whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Run(tmp_path, At("on_train_batch_start", 5, die), every_steps=2)
    kept, damaged = sorted(tmp_path.glob("state-*"))
    assert kept.name.startswith("state-00000003-") and damaged.name.startswith("state-00000004-")
    assert is_intact(kept) and is_intact(damaged)
    damage(damaged)
    (tmp_path / ".left.partial").write_bytes(b"half")
    capsys.readouterr()

    assert newest_intact(tmp_path) == kept
    assert f"{damaged}: damaged" in capsys.readouterr().err
    assert not any(is_intact(path) for path in (damaged, tmp_path / "best.ckpt", tmp_path / "gone.ckpt"))

    check_that_it_went_on(before, Run(tmp_path), whole)
    assert not damaged.exists() and not (tmp_path / ".left.partial").exists()


def test_the_best_weights_are_those_that_the_snapshot_knows(tmp_path: Path) -> None:
    Run(tmp_path, At("on_train_batch_start", 4, die))
    (state,) = tmp_path.glob("state-*")
    known = tmp_path / state.name.replace("state", "best")
    assert known.samefile(tmp_path / "best.ckpt")
    of_then = known.read_bytes()
    with replacing(tmp_path / "best.ckpt") as partial_file:  # by an epoch that is lost with the process
        partial_file.write_bytes(b"of a better epoch")

    found = []
    Run(tmp_path, At("on_train_batch_start", 3, lambda: found.append((tmp_path / "best.ckpt").read_bytes())))
    assert found == [of_then]
    names = {path.name.partition("-")[2] for path in tmp_path.glob("state-*")}
    assert {path.name.partition("-")[2] for path in tmp_path.glob("best-*")} == names and len(names) == 2


def test_epochs_too_short_to_be_worth_it_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PAUSE", 1e6)
    Run(tmp_path, At("on_train_batch_start", 8, die), max_epochs=4)
    assert [path.name[:14] for path in tmp_path.glob("state-*")] == ["state-00000003"]  # it takes one to know how long
    Run(tmp_path, At("on_validation_batch_start", 6, send(signal.SIGTERM)), max_epochs=4)
    assert sorted(path.name[:14] for path in tmp_path.glob("state-*")) == ["state-00000003", "state-00000006"]


def test_a_schedule_that_holds_its_length_does_not_go_on_in_a_longer_run(tmp_path: Path) -> None:
    Run(tmp_path, At("on_train_batch_start", 4, die), schedule=schedulers.onecycle)
    with pytest.raises(UserError, match=r"its schedule takes 6 steps, and this run 9\. Set trainer\.max_epochs"):
        Run(tmp_path, schedule=schedulers.onecycle, max_epochs=3)


def test_a_folder_without_an_intact_one_has_none(tmp_path: Path) -> None:
    assert newest_intact(tmp_path / "missing") is None
    (tmp_path / "state-00000001-0123456789abcdef.ckpt").write_bytes(b"")
    assert newest_intact(tmp_path) is None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", megabytes=64) as disk:
        yield disk


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def test_a_full_disk_costs_a_snapshot_and_not_the_training(
    disk: Path, whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    fills = At("on_train_batch_start", 3, lambda: fill(disk))
    clears = At("on_train_batch_start", 4, lambda: (disk / "filler").unlink())
    run = Run(disk / "run", fills, clears, every_steps=1)

    assert run.outcome() == whole.outcome()
    said = capsys.readouterr().err
    assert "step 4 is not saved: [Errno 28] No space left on device" in said and "step 5" not in said


def test_the_end_must_be_saved(disk: Path) -> None:
    with pytest.raises(UserError, match=r"paths\.run: the end of the training cannot be saved in .*No space left"):
        Run(disk / "run", At("on_train_epoch_end", NUM_STEPS, lambda: fill(disk)))
    newest = newest_intact(disk / "run")
    assert newest and newest.name.startswith("state-00000003-")


def test_the_weights_of_the_best_epoch_are_no_state_to_go_on_from(whole: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best\.ckpt: holds weights, and not the state of a training"):
        Run(tmp_path, start=whole.folder / "best.ckpt")
