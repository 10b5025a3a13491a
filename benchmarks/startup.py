"""How long a command takes to begin: `train.py --help`, and `train.py` up to the end of its first optimizer step.

The latter is that of a published, decoded data set and a database that exists, as in every run but the first. Beside
it, in the same run and in turns: the bare imports of torch, lightning and mlflow, and with `--lht` the start of
lightning-hydra-template at its own example (MNIST; here noise in MNIST's files), as it comes and with its MLflow
logger over SQLite. A first round is not counted. A last start of ours is sampled, to say where the time goes.

    git clone https://github.com/ashleve/lightning-hydra-template
    pip install --target lightning-hydra-template/.packages hydra-core==1.3.2 hydra-colorlog==1.2.0 rootutils
    python benchmarks/startup.py --lht lightning-hydra-template

What it needs and we have in another version, or not at all, lies in `.packages`; torch, lightning and mlflow are ours.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from flatfix.machine import num_cores
from flatfix.tracking.provenance import Provenance

ROOT = Path(__file__).parents[1]
PROBE = ROOT / "benchmarks" / "peers" / "first_step.py"
HELP, BARE, OURS = "train.py --help", "bare imports", "train.py"
IMPORTS = ("torch", "lightning", "mlflow")
HELP_LIMIT_S = 2.0
NUM_CLASSES, PER_CLASS, SIZE = 3, 200, 32
NUM_SHOWN = 16


class Cost(NamedTuple):
    """Hold what a start took: on the wall, and of the processor in all threads and child processes."""

    wall_s: float
    cpu_s: float


def run(command: list[str], folder: Path) -> None:
    """Run a command in a folder to its end; the packages that lie there come before those of this environment.

    Raises:
        RuntimeError: when it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(folder.absolute() / ".packages")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def whole(arguments: list[str], folder: Path = ROOT) -> Cost:
    """Measure a Python command from start to end."""
    began, before = time.monotonic(), children_cpu_s()
    run([sys.executable, *arguments], folder)
    return Cost(time.monotonic() - began, children_cpu_s() - before)


def children_cpu_s() -> float:
    """Return what the child processes that have ended computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def first_step(arguments: list[str], folder: Path = ROOT, explain: str = "-") -> tuple[Cost, dict[str, float]]:
    """Measure a training command up to the end of its first step; with a package named, also where the time went."""
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, str(PROBE), file.name, explain, *arguments]
        began = time.monotonic()
        run(command, folder)
        moment = json.loads(Path(file.name).read_text())
    return Cost(moment["monotonic_s"] - began, moment["cpu_s"]), moment["spent_s"]


def draw_pictures(folder: Path) -> None:
    """Draw class folders of noise."""
    rng = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")


def draw_mnist(folder: Path) -> None:
    """Draw noise in the files of MNIST (magic number, sizes, bytes), where torchvision looks for them."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *images.shape) + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())


def main() -> None:
    """Measure, print the table, and write it as JSON beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lht", type=Path, help="a checkout of lightning-hydra-template; left out without it")
    options = parser.parse_args()
    machine = Provenance.collect(ROOT, [*IMPORTS, "hydra-core", "timm"])
    with tempfile.TemporaryDirectory(prefix="flatfix-startup-") as temporary:
        folder = Path(temporary)
        draw_pictures(folder / "pictures")
        ours = [str(ROOT / "train.py"), "dataset=folder", "dataset.name=noise", f"dataset.image_size={SIZE}"]
        ours += [f"dataset.source.root={folder / 'pictures'}", "model=cnn", f"paths.output={folder / 'outputs'}"]
        whole([*ours, "debug=fast", "report=false"])  # publishes, decodes, makes the database
        sides: dict[str, Callable[[], Cost]] = {
            HELP: partial(whole, [str(ROOT / "train.py"), "--help"]),
            BARE: partial(whole, ["-c", f"import {', '.join(IMPORTS)}"]),
            OURS: lambda: first_step(ours)[0],
        }
        if options.lht:
            draw_mnist(folder / "mnist" / "MNIST" / "raw")
            theirs = [str((options.lht / "src" / "train.py").absolute()), f"paths.data_dir={folder / 'mnist'}"]
            theirs += [f"hydra.run.dir={folder / 'lht'}"]
            tracked = [*theirs, "logger=mlflow", f"logger.mlflow.tracking_uri=sqlite:///{folder / 'lht.db'}"]
            sides["lightning-hydra-template"] = lambda: first_step(theirs, options.lht)[0]
            sides["the same, logger=mlflow"] = lambda: first_step(tracked, options.lht)[0]
        else:
            print("lightning-hydra-template: skipped, see --lht")
        costs: dict[str, list[Cost]] = {name: [] for name in sides}
        for number in range(options.rounds + 1):
            for name, measure in sides.items():
                cost = measure()
                if number:
                    costs[name].append(cost)
        _, spent = first_step(ours, explain="flatfix")
    report(costs, spent, machine, options.rounds)
    facts = {
        "cpu": machine.cpu,
        "num_cores": num_cores(),
        "load": os.getloadavg()[0],
        "packages": machine.packages,
        "costs": {name: [cost._asdict() for cost in each] for name, each in costs.items()},
        "spent_s": spent,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


def report(costs: dict[str, list[Cost]], spent: dict[str, float], machine: Provenance, rounds: int) -> None:
    """Print what was measured, what it is to stay under, and where the time of ours goes."""
    print(f"\n{machine.cpu}, {num_cores()} cores, load {os.getloadavg()[0]:.1f}; {rounds} rounds; {machine.packages}\n")
    medians = {name: Cost(*map(statistics.median, zip(*each, strict=True))) for name, each in costs.items()}
    print(f"{'medians':28}{'wall, s':>10}{'CPU, s':>10}")
    for name, cost in medians.items():
        print(f"{name:28}{cost.wall_s:10.2f}{cost.cpu_s:10.2f}")
    limits = Cost(*(1.5 * seconds + 2 for seconds in medians[BARE]))
    print(f"\n{HELP}: {medians[HELP].wall_s:.2f} s, to stay under {HELP_LIMIT_S:g} s")
    for what, took, limit in zip(("wall", "CPU"), medians[OURS], limits, strict=True):
        print(f"first step, {what}: {took:.2f} s, to stay under 1.5 x bare imports + 2 s = {limit:.2f} s")
    print(f"\nwhere {sum(spent.values()):.2f} s of one more start of {OURS} went, in s")
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1])[:NUM_SHOWN]:
        print(f"{seconds:8.2f}  {name}")


if __name__ == "__main__":
    main()
