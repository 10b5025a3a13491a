"""Time until a network tells a share of CIFAR-10's test pictures: our loop beside others, with the same network.

timm's `train.py` and lightning-hydra-template's get `whitened_resnet` and what their options can say of the recipe of
`experiment=cifar10_fast`; airbench94 trains its own network by its own recipe. All see the 50,000 training pictures,
tell the accuracy on the 10,000 test pictures after every epoch, each by itself and its mirror image, and compute in
bfloat16 where the CPU is fast in that. They take turns, one at a time on the CPU in processes of their own; one that
gets to the highest target is ended. The clock starts with the process, but airbench's where it has decoded the
pictures. Ours and airbench do so once, which is told apart (for ours with publishing and a step); timm and the template
do it in every epoch. Nothing else should run on the machine.

    python benchmarks/time_to_accuracy.py --root /data/cifar10 --timm ../pytorch-image-models \
        --template ../lightning-hydra-template --airbench ../cifar10-airbench

The root holds `train/` and `test/`. The others are checkouts of their repositories; what is not named is left out. The
template needs `pip install rootutils hydra-colorlog`. A CPU without AMX has little time for the whole network: with
`--widths 32 128 128 --targets 0.8 0.85` an epoch took two cores of a Zen 3 between 72 and 103 s.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `benchmarks`

from benchmarks.loader import unpacked  # noqa: E402
from benchmarks.peers.accuracy_network import MEAN, STD  # noqa: E402
from flatfix.console import table  # noqa: E402
from flatfix.machine import num_cores  # noqa: E402
from flatfix.tracking.provenance import Provenance  # noqa: E402
from flatfix.training import precision  # noqa: E402

OURS = "flatfix"
WORKERS = 2
LR, MOMENTUM, WEIGHT_DECAY, BATCH = 0.8, 0.85, 0.00133, 512  # conf/experiment/cifar10_fast.yaml
PRECISION, _ = precision.choose("auto", "cpu")
PACKAGES = ["torch", "torchvision", "lightning", "timm"]

Curve = list[tuple[float, float]]  # seconds since the start of the clock, accuracy; an entry an epoch


@dataclass(frozen=True)
class Task:
    """Say what is trained.

    Attributes:
        pictures: holds `train/` and `val/` with class folders, and `test/`, which only ours reads.
        folder: to write in.
        num_epochs: of a whole schedule, with its warm-up over the first quarter.
        widths: of the network's stages.
        seed: of the round.
    """

    pictures: Path
    folder: Path
    num_epochs: int
    widths: list[int]
    seed: int

    @property
    def warmup_epochs(self) -> int:
        """How many epochs the learning rate rises for."""
        return round(self.num_epochs / 4)


@dataclass(frozen=True)
class Arm:
    """Say how a system is run, and what it prints.

    Attributes:
        words: of its command.
        line: tells the accuracy of an epoch, `scale` times.
        scale: of the accuracy.
        prepared: the line at which the clock starts; without one it starts with the process.
    """

    words: Callable[[Task, Path], list[str]]
    line: re.Pattern[str]
    scale: float = 1.0
    prepared: str | None = None


def flatfix(task: Task, _: Path) -> list[str]:
    """Return the words of our `train.py`."""
    return [
        *("train.py", "experiment=cifar10_fast", "dataset=folder", "dataset.name=pictures", "dataset.image_size=32"),
        *(f"dataset.source.root={task.pictures}", f"dataset.batch_size={BATCH}"),
        f"+model.options.widths={task.widths}",
        "dataset.allow_duplicates=true",  # the pictures that tell the accuracy are those of the test
        *(f"paths.output={task.folder / OURS}", f"seed={task.seed}", "registry.register=false", "report=false"),
        *(f"trainer.max_epochs={task.num_epochs}", f"scheduler.warmup_epochs={task.warmup_epochs}"),
        "trainer.accelerator=cpu",  # as the others
    ]


def timm(task: Task, checkout: Path) -> list[str]:
    """Return the words of timm's `train.py`; it has no shifts, so it crops."""
    return [
        *("-m", "benchmarks.peers.accuracy_timm", str(checkout), "--data-dir", str(task.pictures), "--device", "cpu"),
        *("--train-split", "train", "--val-split", "val", "--model", "whitened_classifier", "--num-classes", "10"),
        *("--model-kwargs", f"train={task.pictures / 'train'}", f"widths={task.widths}"),
        *("--input-size", "3", "32", "32", "--crop-pct", "1"),
        *("--mean", *map(str, MEAN), "--std", *map(str, STD), "--scale", "0.8", "1", "--ratio", "0.9", "1.1"),
        *("--color-jitter", "0", "--smoothing", "0.2", "--opt", "sgd", "--lr", f"{LR}", "--momentum", f"{MOMENTUM}"),
        *("--weight-decay", f"{WEIGHT_DECAY}", "--sched", "cosine", "--sched-on-updates", "--warmup-prefix"),
        *("--warmup-epochs", f"{task.warmup_epochs}", "--epochs", f"{task.num_epochs - task.warmup_epochs}"),
        *(("--amp", "--amp-dtype", "bfloat16") if PRECISION == "bf16-mixed" else ()),
        *("--channels-last", "--workers", f"{WORKERS}", "--seed", f"{task.seed}"),
        *("--batch-size", f"{BATCH}", "--output", str(task.folder / "timm"), "--checkpoint-hist", "1"),
    ]


def template(task: Task, checkout: Path) -> list[str]:
    """Return the words of the template's `train.py`; its loss has no smoothing, its schedule moves once an epoch."""
    peer = "benchmarks.peers.accuracy_template"
    return [
        *("-m", peer, str(checkout), f"data._target_={peer}.Pictures"),
        *("~data.data_dir", "~data.train_val_test_split", "~data.pin_memory", f"+data.root={task.pictures}"),
        *(f"data.batch_size={BATCH}", f"data.num_workers={WORKERS}", f"seed={task.seed}", "test=false"),
        *(
            "model.net._target_=benchmarks.peers.accuracy_network.network",
            f"+model.net.train={task.pictures / 'train'}",
            f"+model.net.widths={task.widths}",
        ),
        *(f"~model.net.{name}_size" for name in ("input", "lin1", "lin2", "lin3", "output")),
        *(f"model.optimizer._target_={peer}.optimizer", "model.optimizer._partial_=false"),
        *(f"model.optimizer.lr={LR}", "+model.optimizer.nesterov=true"),
        *(f"+model.optimizer.momentum={MOMENTUM}", f"model.optimizer.weight_decay={WEIGHT_DECAY}"),
        *(f"model.scheduler._target_={peer}.scheduler", "model.scheduler._partial_=false"),
        *(f"~model.scheduler.{name}" for name in ("mode", "factor", "patience")),
        *("+model.scheduler.steps_per_epoch=1", "+model.scheduler.direction=max"),
        f"+model.scheduler.total_steps={task.num_epochs}",
        *(f"+model.scheduler.warmup_epochs={task.warmup_epochs}", f"trainer.max_epochs={task.num_epochs}"),
        *(f"+trainer.precision={PRECISION}", f"+callbacks.line._target_={peer}.Line"),
        *("~callbacks.rich_progress_bar", "+trainer.enable_progress_bar=false", f"paths.log_dir={task.folder}"),
    ]


def airbench(task: Task, checkout: Path) -> list[str]:
    """Return the words of airbench94; it trains for 9.9 epochs of its own."""
    epochs = min(9.9, task.num_epochs)
    return [
        *("-m", "benchmarks.peers.accuracy_airbench", str(checkout), str(task.pictures), f"{epochs}"),
        *map(str, task.widths),
    ]


ARMS = {
    OURS: Arm(flatfix, re.compile(r"^epoch .* accuracy [\d.]+/([\d.]+)")),
    "timm": Arm(timm, re.compile(r"Test: \[ *(?P<last>\d+)/(?P=last)\].*Acc@1: +[\d.]+ \( *([\d.]+)\)"), 100.0),
    "template": Arm(template, re.compile(r"^accuracy ([\d.]+)")),
    "airbench": Arm(airbench, re.compile(r"^\|[^|]*\| +\d+ +\|[^|]*\|[^|]*\| +([\d.]+) +\|"), prepared="prepared"),
}


def curve(arm: Arm, task: Task, checkout: Path, target: float) -> tuple[Curve, float]:
    """Run a system until it gets to the target, or to its end.

    Returns:
        The accuracy after every epoch, and the seconds before the clock started.

    Raises:
        RuntimeError: when it fails.
    """
    began = start = time.perf_counter()
    told: Curve = []
    said: list[str] = []
    command = [sys.executable, *arm.words(task, checkout)]
    places = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": places}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for line in process.stdout or ():
            said.append(line)
            if line.strip() == arm.prepared:
                start = time.perf_counter()
            elif found := arm.line.search(line):
                told.append((time.perf_counter() - start, float(found.groups()[-1]) / arm.scale))
                if told[-1][1] >= target:
                    process.terminate()
                    break
        else:
            if process.wait():
                raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}\n{''.join(said[-40:])}")
    return told, start - began


def laid_out(root: Path, folder: Path) -> Path:
    """Return a folder with `train/` and `val/` for all, where the test pictures tell the accuracy."""
    for name, split in (("train", "train"), ("val", "test"), ("test", "test")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to((root / split).resolve())
    return folder


def prepared_s(task: Task) -> float:
    """Let ours publish and decode the pictures; return the seconds that it took, with a step."""
    start = time.perf_counter()
    words = ["trainer.max_epochs=1", "scheduler.warmup_epochs=0", "trainer.limit_batches=1"]
    subprocess.run([sys.executable, *flatfix(task, ROOT), *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def until(told: Curve, target: float) -> float | None:
    """Return the seconds until the target was reached, or None."""
    return next((seconds for seconds, accuracy in told if accuracy >= target), None)


def report(curves: dict[str, list[Curve]], preparations_s: dict[str, float], targets: list[float]) -> None:
    """Print a row for each system: in seconds, the median over the rounds that got to each target, and how many did."""
    heads = [f"{target:.0%}: s, median (rounds)" for target in targets]
    header = ("", "s of preparation, once", *heads, "s an epoch", "epochs", "best accuracy")
    rows = []
    for name, rounds in curves.items():
        cells = []
        for target in targets:
            times = [seconds for told in rounds if (seconds := until(told, target)) is not None]
            cells.append(f"{statistics.median(times):,.0f} ({len(times)} of {len(rounds)})" if times else "never")
        between = [later[0] - one[0] for told in rounds for one, later in pairwise(told)]
        lasted = f"{statistics.median(between):,.1f}" if between else ""
        epochs = f"{statistics.median(map(len, rounds)):g}"
        best = max((accuracy for told in rounds for _, accuracy in told), default=0.0)
        rows.append((name, f"{preparations_s[name]:.0f}", *cells, lasted, epochs, f"{best:.4f}"))
    table(header, rows)


def main() -> None:
    """Measure, print the table, and write it as JSON beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with train/ and test/; the default unpacks shared/data")
    for name in ARMS:
        if name != OURS:
            parser.add_argument(f"--{name}", type=Path, help=f"checkout of {name}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--widths", type=int, nargs=3, default=[64, 256, 256], help="channels of the network's stages")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.9])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if not all(0 < target <= 1 for target in options.targets):
        parser.error(f"--targets: shares of the test pictures, as in 0.8 0.85; not {options.targets}")
    checkouts = {OURS: ROOT, **{name: getattr(options, name) for name in ARMS if name != OURS}}
    for name, checkout in checkouts.items():
        if checkout is None:
            print(f"{name}: left out, no checkout of it is named")
        elif not checkout.is_dir():
            parser.error(f"--{name}={checkout}: no such folder")
    arms = {name: checkout.resolve() for name, checkout in checkouts.items() if checkout}
    machine = Provenance.collect(ROOT, PACKAGES)
    load = os.getloadavg()[0]
    curves: dict[str, list[Curve]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory(prefix="flatfix-accuracy-") as temporary:
        folder = Path(temporary)
        pictures = laid_out(options.root or unpacked(folder, parser).parent, folder / "pictures")
        preparations_s = {OURS: prepared_s(Task(pictures, folder, options.epochs, options.widths, seed=0))}
        print(f"{machine.cpu}, {num_cores()} cores, {PRECISION}, load {load:.1f}; {machine.packages}")
        for number in range(options.rounds):
            # The template takes seed 0 for none.
            task = Task(pictures, folder, options.epochs, options.widths, seed=number + 1)
            for shift in range(len(arms)):
                name = list(arms)[(number + shift) % len(arms)]
                told, preparation_s = curve(ARMS[name], task, arms[name], max(options.targets))
                curves[name].append(told)
                preparations_s.setdefault(name, preparation_s)
                print(f"round {number + 1}, {name}: {told}", flush=True)
    report(curves, preparations_s, options.targets)
    facts = {
        "cpu": machine.cpu,
        "num_cores": num_cores(),
        "load": load,
        "packages": machine.packages,
        "num_epochs": options.epochs,
        "targets": options.targets,
        "widths": options.widths,
        "precision": PRECISION,
        "prepared_s": preparations_s,
        "curves": curves,
    }
    options.output.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
