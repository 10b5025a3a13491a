"""What a step of training costs beside the arithmetic: `train.py`, a bare PyTorch loop, and a stock Lightning loop.

All three train the same network from the same weights, on the same batches in the same order, with the same optimizer
and schedule, in turns whose order rotates:

  bare       forward, backward, optimizer, schedule; at the end of an epoch, loss and accuracy of validation
  train.py   `flatfix.training.run.train` up to the end of its fit: progress bar, six metrics of training and
             validation, checkpoints, state to resume from, and runs in MLflow (SQLite)
  Lightning  torchmetrics' `forward` of loss and accuracy and `self.log` in every step, as lightning-hydra-template does
             it; the trainer as it comes, with its progress bar and checkpoint, and its MLflow logger

A step is counted from the start of an epoch to the end of its last batch, in all epochs but the first; the fit is all
epochs, with validation and what is written. Bars are drawn, into /dev/null. What is told is the median over rounds of
what a loop takes beside the bare one in the same round.

    python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}  # for `rich`: a bar that nobody sees costs nothing

import hydra
import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import MLFlowLogger
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from flatfix.config import resolvers
from flatfix.config.options import TRAIN
from flatfix.config.schema import validate
from flatfix.data.datamodule import Batch, ImageDataModule
from flatfix.machine import num_cores
from flatfix.tracking.provenance import Provenance
from flatfix.training.module import TrainingModule, parameter_groups
from flatfix.training.plan import Plan, make_plan
from flatfix.training.quiet import quieten
from flatfix.training.run import train

ROOT = Path(__file__).parents[1]
NUM_CLASSES, PER_CLASS, SIZE = 3, 2_000, 32
NUM_EPOCHS = 3
BARE, OURS, STOCK = "bare", "train.py", "Lightning"
MAX_RATIO, RATIO_FROM_MS, MAX_EXTRA_MS = 1.05, 20, 0.6


class Network(NamedTuple):
    """Say what is trained: channels of the stages of `model=cnn`, pixels a side, pictures in a batch, part of all.

    Each side computes in so many threads.
    """

    widths: tuple[int, ...]
    size: int
    batch_size: int
    part: float
    threads: int


NETWORKS = {
    "toy network": Network((4,), 8, 16, 1.0, 1),  # a second thread makes all three slower
    "small network": Network((32, 64, 128), 32, 64, 0.25, torch.get_num_threads()),
}


class Cost(NamedTuple):
    """Hold milliseconds a step, on the wall and of the processor, and seconds of the fit."""

    step_ms: float
    step_cpu_ms: float
    fit_s: float


class Clock(L.Callback):
    """Measure the steps of all epochs but the first, and the fit."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._steps = self._began = self._epoch_began = np.zeros(2)

    @staticmethod
    def now() -> np.ndarray:
        """Return seconds of the wall and of the processor, once the device has done what it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return np.array([time.perf_counter(), time.process_time()])

    def on_train_start(self, *_: Any) -> None:
        """Begin the fit."""
        self._began = self.now()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin an epoch."""
        self._epoch_began = self.now()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the steps of an epoch with its last batch."""
        if batch_idx + 1 == trainer.num_training_batches:
            self.end_steps(trainer.current_epoch, batch_idx + 1)

    def end_steps(self, epoch: int, num_steps: int) -> None:
        """Count the steps of an epoch that has just trained."""
        if epoch > 0:
            self._steps = self._steps + self.now() - self._epoch_began
            self._num_steps += num_steps

    def on_train_end(self, *_: Any) -> None:
        """End the fit."""
        fit_s, _ = self.now() - self._began
        self.cost = Cost(*(1000 * self._steps / self._num_steps), fit_s)


class Case(NamedTuple):
    """Hold what the three loops have in common."""

    cfg: dict[str, Any]
    plan: Plan
    module: TrainingModule
    data: ImageDataModule


class _FitReplaced(Exception):
    """End a run in place of its evaluation."""


@contextmanager
def in_place_of_fit(fit: Callable[[L.Trainer, TrainingModule, ImageDataModule], None]) -> Iterator[None]:
    """Let `train` call `fit` as the trainer's, and leave the block as soon as it has."""
    original = L.Trainer.fit

    def replaced(self: L.Trainer, model: TrainingModule, *, datamodule: ImageDataModule, **_: Any) -> None:
        L.Trainer.fit = original
        fit(self, model, datamodule)
        raise _FitReplaced

    L.Trainer.fit = replaced
    try:
        yield
    except _FitReplaced:
        pass
    finally:
        L.Trainer.fit = original


def compose(folder: Path, *words: str) -> dict[str, Any]:
    """Return the config of `python train.py` with these words, which writes below a folder."""
    overrides = [
        *("dataset=folder", "dataset.name=noise", f"dataset.source.root={folder / 'pictures'}"),
        *("dataset.split.val_fraction=0.02", "dataset.split.test_fraction=0.02"),
        *("model=cnn", "trainer.precision=32", f"trainer.max_epochs={NUM_EPOCHS}", f"paths.output={folder}"),
        *(f"paths.run={tempfile.mkdtemp(dir=folder)}", *words),
    ]
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return validate(hydra.compose("train", overrides), TRAIN, overrides)


def prepare(network: Network, folder: Path) -> Case:
    """Publish and decode the pictures unless that is done, and keep what `train` would train with."""
    words = [f"+model.options.widths={list(network.widths)}", f"dataset.image_size={network.size}"]
    words += [f"dataset.batch_size={network.batch_size}", f"dataset.sample_fraction={network.part}"]
    kept: list[Any] = []
    cfg = compose(folder, *words)
    with in_place_of_fit(lambda _, module, data: kept.extend([copy.deepcopy(module), data])):
        train(cfg)
    return Case(compose(folder, *words), make_plan(cfg), *kept)


def bare(case: Case) -> Cost:
    """Train as a script without a framework would."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = copy.deepcopy(case.module.classifier).to(device)
    loader, validation = case.data.train_dataloader(), case.data.val_dataloader()
    optimizer = case.plan.optimizer(parameter_groups(classifier.named_parameters(), False))
    total_steps = NUM_EPOCHS * len(loader)
    scheduler = case.plan.scheduler(optimizer, total_steps=total_steps, steps_per_epoch=len(loader), direction="max")
    clock = Clock()
    clock.on_train_start()
    for epoch in range(NUM_EPOCHS):
        classifier.train()
        loader.set_epoch(epoch)
        clock.on_train_epoch_start()
        for batch in loader:
            inputs, labels = (each.to(device, non_blocking=True) for each in (batch.inputs, batch.labels))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(classifier(inputs).logits, labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
        clock.end_steps(epoch, len(loader))
        classifier.eval()
        total_loss = num_right = torch.zeros((), device=device)
        with torch.inference_mode():
            for batch in validation:
                inputs, labels = (each.to(device, non_blocking=True) for each in (batch.inputs, batch.labels))
                logits = classifier(inputs).logits
                total_loss = total_loss + nn.functional.cross_entropy(logits, labels, reduction="sum")
                num_right = num_right + (logits.argmax(1) == labels).sum()
        print(f"{epoch}: {float(total_loss)} {float(num_right)}")
    clock.on_train_end()
    return clock.cost


def ours(case: Case) -> Cost:
    """Train as `train.py` does."""
    clock = Clock()

    def fit(trainer: L.Trainer, module: TrainingModule, data: ImageDataModule) -> None:
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        trainer.fit(module, datamodule=data)

    folder = Path(tempfile.mkdtemp(dir=case.cfg["paths"]["output"]))
    cfg = {**case.cfg, "paths": {**case.cfg["paths"], "run": str(folder)}}
    with in_place_of_fit(fit):
        train(cfg)
    return clock.cost


class StockModule(L.LightningModule):
    """Measure and log in every step, as Lightning's and torchmetrics' guides do."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(case.module.classifier)
        self._plan = case.plan
        for split in ("train", "val"):
            setattr(self, f"{split}_loss", MeanMetric())
            setattr(self, f"{split}_accuracy", MulticlassAccuracy(NUM_CLASSES, average="micro"))

    def _step(self, batch: Batch, split: str) -> Tensor:
        logits = self.classifier(batch.inputs).logits
        loss = nn.functional.cross_entropy(logits, batch.labels)
        mean, accuracy = getattr(self, f"{split}_loss"), getattr(self, f"{split}_accuracy")
        mean(loss)
        accuracy(logits, batch.labels)
        self.log(f"{split}/loss", mean, on_step=False, on_epoch=True, prog_bar=True)
        self.log(f"{split}/accuracy", accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a validation batch."""
        self._step(batch, "val")

    def configure_optimizers(self) -> Any:
        """Build what the other loops have."""
        optimizer = self._plan.optimizer(parameter_groups(self.classifier.named_parameters(), False))
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self._plan.scheduler(
            optimizer, total_steps=total_steps, steps_per_epoch=total_steps // NUM_EPOCHS, direction="max"
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def stock(case: Case) -> Cost:
    """Train as a Lightning user does."""
    clock = Clock()
    trainer = L.Trainer(
        max_epochs=NUM_EPOCHS,
        devices=1,
        logger=MLFlowLogger("stock", tracking_uri=case.cfg["tracking"]["uri"]),
        callbacks=[clock],
        default_root_dir=tempfile.mkdtemp(dir=case.cfg["paths"]["output"]),
    )
    trainer.fit(StockModule(case), datamodule=case.data)
    return clock.cost


SIDES = {BARE: bare, OURS: ours, STOCK: stock}


def measure(case: Case, rounds: int) -> dict[str, list[Cost]]:
    """Return what each loop cost, by round; a first round is not counted."""
    costs: dict[str, list[Cost]] = {name: [] for name in SIDES}
    for number in range(rounds + 1):
        for shift in range(len(SIDES)):
            name = list(SIDES)[(number + shift) % len(SIDES)]
            cost = SIDES[name](case)
            if number:
                costs[name].append(cost)
    return costs


def draw_pictures(folder: Path) -> None:
    """Draw class folders of noise."""
    rng = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png", compress_level=0)


def quartiles(values: list[float]) -> str:
    """Write the median and, in brackets, the quartiles around it."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def report(name: str, network: Network, costs: dict[str, list[Cost]]) -> None:
    """Print what each loop costs beside the bare one in the same round, and the limit that holds there."""
    print(
        f"\n{name}: model=cnn, widths {list(network.widths)}, {network.size} px, batches of {network.batch_size}, "
        f"threads: {network.threads}"
    )
    print(
        f"{'medians [quartiles]':20}{'ms a step':>26}{'of bare':>22}{'more, ms':>25}{'more CPU, ms':>25}{'fit, s':>8}"
    )
    for side, each in costs.items():
        pairs = list(zip(each, costs[BARE], strict=True))
        ratio = quartiles([one.step_ms / base.step_ms for one, base in pairs])
        more = quartiles([one.step_ms - base.step_ms for one, base in pairs])
        more_cpu = quartiles([one.step_cpu_ms - base.step_cpu_ms for one, base in pairs])
        fit_s = statistics.median(one.fit_s for one in each)
        step = quartiles([one.step_ms for one in each])
        print(f"{side:20}{step:>26}{ratio:>22}{more:>25}{more_cpu:>25}{fit_s:8.2f}")
    is_large = statistics.median(base.step_ms for base in costs[BARE]) >= RATIO_FROM_MS
    limit = f"{MAX_RATIO} of {BARE}" if is_large else f"{MAX_EXTRA_MS} ms over {BARE}"
    print(f"{OURS} is to stay within {limit}")


def main() -> None:
    """Measure, print the tables, and write them as JSON beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    machine = Provenance.collect(ROOT, ["torch", "lightning", "torchmetrics", "mlflow"])
    device = machine.gpus[0] if machine.gpus else machine.cpu
    resolvers.register()
    quieten()
    costs = {}
    with (
        tempfile.TemporaryDirectory(prefix="flatfix-overhead-") as temporary,
        Path(os.devnull).open("w") as nowhere,
    ):
        folder = Path(temporary)
        draw_pictures(folder / "pictures")
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            for name, network in NETWORKS.items():
                torch.set_num_threads(network.threads)
                costs[name] = measure(prepare(network, folder), options.rounds)
    print(
        f"{device}, load {os.getloadavg()[0]:.1f} of {num_cores()} cores; {options.rounds} rounds; {machine.packages}"
    )
    for name, network in NETWORKS.items():
        report(name, network, costs[name])
    facts = {
        "device": device,
        "load": os.getloadavg()[0],
        "packages": machine.packages,
        "networks": {name: network._asdict() for name, network in NETWORKS.items()},
        "costs": {
            name: {side: [cost._asdict() for cost in each] for side, each in of.items()} for name, of in costs.items()
        },
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
