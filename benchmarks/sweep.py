"""What a sweep costs and finds: against the stock sweeper's barrier, pruned against not, TPE against random search.

First, replayed durations under hydra-optuna-sweeper with hydra-joblib-launcher, two jobs at a time, and under ours with
two workers: jobs that sleep as long as they are told, in turns. Then real sweeps of a small network over a fixed part
of CIFAR-10, with the spaces of `sweep=tpe` and `sweep=random` as they are: for each seed, every sampler and pruner in
turns. A seed is that of the sampler and of the training. Nothing else should run on the machine.

    python benchmarks/sweep.py --root /data/cifar10
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `benchmarks`

from benchmarks.loader import unpacked  # noqa: E402
from benchmarks.peers.replay import PARAMETER  # noqa: E402
from flatfix.machine import num_cores  # noqa: E402
from flatfix.sweeps.trials import Outcome, counted  # noqa: E402
from flatfix.tracking.provenance import Provenance  # noqa: E402

WORKERS = 2
STOCK = [
    *("-m", "benchmarks.peers.sweep_stock"),
    *("-m", "hydra/sweeper=optuna", "hydra/launcher=joblib", "hydra.sweeper.direction=maximize"),
    *(f"hydra.sweeper.n_jobs={WORKERS}", f"hydra.launcher.n_jobs={WORKERS}", f"+parameter={PARAMETER}"),
]
OURS = [
    *("-m", "benchmarks.peers.sweep_flatfix"),
    *("-m", "hydra/sweeper=optuna", f"sweep.workers={WORKERS}", f"optimizer.lr={PARAMETER}", "pruner=none"),
    *("dataset=tires", "sweep.register=none"),  # nothing is trained
]
PARTS = ("replay", "search")
KINDS = ("uniform ± 50 %", "one long tail")
TAIL = 6  # times the mean: how long one trial lasts of those with a tail

PICTURES = {"train": ("train", 0, 200), "val": ("train", 200, 300), "test": ("test", 0, 20)}  # of each class: from, to
NUM_CLASSES = 10
TRIAL_S = 10  # of one core of a Xeon with AMX, for the budget
TRAIN = [
    str(ROOT / "train.py"),
    *("-m", "dataset=folder", "dataset.name=cifar10", "dataset.image_size=32"),
    *("model=cnn", "+model.options.widths=[8,16,32,64]", f"sweep.workers={WORKERS}", "sweep.register=none"),
    *("report=false", "tracking.system_metrics=false"),
]
UNPRUNED, AT_RANDOM = "tpe, none", "random, none"
ARMS = {
    UNPRUNED: ("tpe", "none"),
    "tpe, median": ("tpe", "median"),
    AT_RANDOM: ("random", "none"),
}


@dataclass(frozen=True)
class Size:
    """Say how much is measured.

    Attributes:
        num_replayed: trials of a sweep over replayed durations.
        mean_s: how long one of them lasts in the mean.
        rounds: of the replayed durations, each with other ones.
        num_trials: of a real sweep.
        max_epochs: of a real trial.
        seeds: of the real sweeps.
    """

    num_replayed: int = 20
    mean_s: float = 12.0
    rounds: int = 1
    num_trials: int = 20
    max_epochs: int = 9
    seeds: tuple[int, ...] = (0, 1, 2)


FIRST = Size(num_trials=WORKERS, max_epochs=1)  # makes databases, publishes and decodes the pictures
QUICK = Size(num_replayed=6, mean_s=0.5, rounds=1, num_trials=3, max_epochs=2, seeds=(0,))


def durations(kind: str, seed: int, size: Size) -> list[float]:
    """Draw how long the trials last: within half of the mean on either side, and one of them longer where asked."""
    drawn = np.random.default_rng(seed).uniform(0.5, 1.5, size.num_replayed) * size.mean_s
    if kind == KINDS[1]:
        drawn[size.num_replayed // 4] = TAIL * size.mean_s
    return [float(one) for one in drawn]


def at_best(lengths: list[float]) -> float:
    """Return the wall time of workers that lose none between two trials."""
    free = [0.0] * WORKERS
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def with_barrier(lengths: list[float]) -> float:
    """Return the wall time of batches without any other loss."""
    return sum(max(lengths[start : start + WORKERS]) for start in range(0, len(lengths), WORKERS))


def run(command: list[str], **environment: str) -> float:
    """Run a Python command to its end, and return the seconds that it took."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(
            f"exit code {done.returncode}: {' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return time.perf_counter() - start


def replay(side: str, lengths: list[float], seed: int, output: Path) -> dict[str, float]:
    """Run a sweep over trials of these lengths; return its wall time and how busy its workers were."""
    folder = Path(tempfile.mkdtemp(dir=output))
    (folder / "durations.json").write_text(json.dumps(lengths))
    if side == "stock":
        words = [*STOCK, f"hydra.sweep.dir={folder / 'sweep'}"]
    else:  # the output root is kept: what it costs to make MLflow's database is paid once
        words = [*OURS, f"sweep.name={folder.name}", f"paths.output={output / 'flatfix'}"]
    words += [f"hydra.sweeper.n_trials={len(lengths)}", f"hydra.sweeper.sampler.seed={seed}"]
    command_s = run(words, REPLAY=str(folder))
    spans: list[tuple[float, float]] = [
        json.loads((folder / f"{number}.json").read_text()) for number in range(len(lengths))
    ]
    first, last_began, last = min(spans)[0], max(spans)[0], max(ended for _, ended in spans)

    def busy(until: float) -> float:
        return sum(min(ended, until) - began for began, ended in spans) / (WORKERS * (until - first))

    return {
        "command_s": command_s,
        "trials_s": last - first,
        "busy": busy(last),
        "busy_while_trials_wait": busy(last_began),
    }


def replays(size: Size, output: Path) -> dict[str, list[dict[str, Any]]]:
    """Return, for each kind of durations, a row a round; the sides swap their turns, and a first run is not counted."""
    for side in ("stock", "ours"):
        replay(side, [0.1] * WORKERS, 0, output)
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for number in range(size.rounds):
        for kind in KINDS:
            lengths = durations(kind, number, size)
            sides = ("stock", "ours")[:: -1 if number % 2 else 1]
            row = {side: replay(side, lengths, number, output) for side in sides}
            results[kind].append({"at_best_s": at_best(lengths), "with_barrier_s": with_barrier(lengths), **row})
    return results


def report_replays(results: dict[str, list[dict[str, Any]]], size: Size) -> None:
    """Print the tables of the replayed durations."""
    for kind, rows in results.items():
        print(f"\n{kind}: {size.num_replayed} trials of {size.mean_s:g} s in the mean, {WORKERS} at a time")
        print(f"{'medians':10}{'trials, s':>12}{'command, s':>12}{'busy':>8}{'busy while trials wait':>25}")
        medians = {}
        for side in ("stock", "ours"):
            one = {name: statistics.median(row[side][name] for row in rows) for name in rows[0][side]}
            medians[side] = one
            print(f"{side:10}{one['trials_s']:12.1f}{one['command_s']:12.1f}", end="")
            print(f"{one['busy']:8.1%}{one['busy_while_trials_wait']:25.1%}")
        at_best_s, with_barrier_s = (
            statistics.median(row[name] for row in rows) for name in ("at_best_s", "with_barrier_s")
        )
        print(f"no time lost between trials: {at_best_s:.1f} s, or {with_barrier_s:.1f} s with a barrier", end="")
        print(f": {at_best_s / with_barrier_s:.2f}")
        ratios = {name: medians["ours"][name] / medians["stock"][name] for name in ("trials_s", "command_s")}
        print(f"ours / stock: {ratios['trials_s']:.2f} from first to last, {ratios['command_s']:.2f} with the command")


def part_of(root: Path, folder: Path) -> Path:
    """Copy a fixed part of CIFAR-10 into train, val and test."""
    for split, (source, start, stop) in PICTURES.items():
        for above in sorted(path for path in (root / source).iterdir() if path.is_dir()):
            to = folder / split / above.name
            to.mkdir(parents=True)
            for picture in sorted(above.iterdir())[start:stop]:
                shutil.copy(picture, to)
    return folder


def search(arm: str, seed: int, size: Size, pictures: Path, output: Path) -> dict[str, Any]:
    """Run a real sweep, and return what it cost and found."""
    sampler, pruner = ARMS[arm]
    name = f"{sampler}-{pruner}-{seed}-{size.num_trials}"
    words = [f"sweep={sampler}", f"pruner={pruner}", f"seed={seed}", f"sweep.name={name}"]
    words += [f"sweep.n_trials={size.num_trials}", f"trainer.max_epochs={size.max_epochs}"]
    words += [f"dataset.source.root={pictures}", f"paths.output={output}"]
    command_s = run([*TRAIN, *words])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = counted(optuna.load_study(study_name=name, storage=f"sqlite:///{output}/sweeps.db").trials)
    values = [trial.values[0] if trial.state.name == "COMPLETE" else -math.inf for trial in trials]
    half = len(values) // 2
    outcomes = [outcome for trial in trials if (outcome := Outcome.of(trial))]
    return {
        "command_s": command_s,
        "trials_s": sum(outcome.seconds for outcome in outcomes),
        "epochs": sum(outcome.epochs for outcome in outcomes),
        "states": Counter(trial.state.name.lower() for trial in trials),
        "best": max(values),
        "best_of_half": max(values[:half]),
        "median_of_rest": statistics.median(values[half:]),  # where the search has come to look
        "trials": [{"state": trial.state.name, "value": trial.value, "params": trial.params} for trial in trials],
    }


def searches(size: Size, pictures: Path, output: Path) -> dict[str, list[dict[str, Any]]]:
    """Return, for each sampler and pruner, a row a seed; the order rotates, and a first small sweep is not counted."""
    search(UNPRUNED, 0, FIRST, pictures, output)
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for number, seed in enumerate(size.seeds):
        for shift in range(len(ARMS)):
            arm = list(ARMS)[(number + shift) % len(ARMS)]
            row = search(arm, seed, size, pictures, output)
            results[arm].append(row)
            states = ", ".join(f"{count} {state}" for state, count in row["states"].items())
            print(f"  {arm}, seed {seed}: {row['command_s']:.0f} s; {states}; best {row['best']:.4f}", flush=True)
    return results


def noise(accuracy: float) -> float:
    """Return one standard error of an accuracy on the validation pictures."""
    _, start, stop = PICTURES["val"]
    return math.sqrt(accuracy * (1 - accuracy) / ((stop - start) * NUM_CLASSES))


def mean(rows: list[dict[str, Any]], name: str) -> float:
    """Return the mean of a column over the seeds."""
    return statistics.mean(float(row[name]) for row in rows)


def report_searches(results: dict[str, list[dict[str, Any]]], size: Size) -> None:
    """Print the tables of the real sweeps."""
    unpruned = results[UNPRUNED]
    print(f"\n{f'means of {len(size.seeds)} seeds':26}{'epochs':>8}{'fewer':>8}{'minutes':>9}{'best':>9}", end="")
    print(f"   best minus that of {UNPRUNED}, by seed")
    for arm, rows in results.items():
        fewer = 1 - mean(rows, "epochs") / mean(unpruned, "epochs")
        apart = "  ".join(f"{row['best'] - other['best']:+.4f}" for row, other in zip(rows, unpruned, strict=True))
        print(f"{arm:26}{mean(rows, 'epochs'):8.0f}{fewer:8.0%}{mean(rows, 'command_s') / 60:9.1f}", end="")
        print(f"{mean(rows, 'best'):9.4f}   {apart}")
    print(f"one standard error of such an accuracy on the validation pictures: {noise(mean(unpruned, 'best')):.4f}")
    if len(size.seeds) > 1:
        spread = statistics.stdev(row["best"] for row in unpruned)
        print(f"standard deviation of {UNPRUNED} over the seeds: {spread:.4f}")
    half = size.num_trials // 2
    print(
        f"\n{f'means of {len(size.seeds)} seeds':26}{f'best of {half}':>12}{f'best of {size.num_trials}':>12}", end=""
    )
    print(f"{f'median of the last {size.num_trials - half}':>24}")
    for arm in (UNPRUNED, AT_RANDOM):
        print(f"{arm:26}{mean(results[arm], 'best_of_half'):12.4f}{mean(results[arm], 'best'):12.4f}", end="")
        print(f"{mean(results[arm], 'median_of_rest'):24.4f}")


def main() -> None:
    """Measure, print the tables, and write them as JSON beside this script, over what an earlier run wrote there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="holds CIFAR-10 as train/<class> and test/<class>")
    parser.add_argument(
        "--quick", action="store_true", help="little of everything, to see that it works; writes nothing"
    )
    parser.add_argument("--part", choices=PARTS, help="measure this part alone (both)")
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    machine = Provenance.collect(
        ROOT, ["hydra-core", "hydra-optuna-sweeper", "hydra-joblib-launcher", "optuna", "torch"]
    )
    load = os.getloadavg()[0]
    print(f"\n{machine.cpu}, {num_cores()} cores, {WORKERS} workers, load at the start {load:.1f}; {machine.packages}")
    with tempfile.TemporaryDirectory(prefix="flatfix-sweep-") as temporary:
        folder = Path(temporary)
        root = options.root or unpacked(folder, parser).parent
        pictures = part_of(root, folder / "pictures")
        lengths = [durations(kind, number, size) for kind in KINDS for number in range(size.rounds)]
        replayed_s = sum(at_best(each) + with_barrier(each) for each in lengths)
        trained_s = (
            len(ARMS) * len(size.seeds) * size.num_trials * TRIAL_S / WORKERS * size.max_epochs / Size().max_epochs
        )
        print(
            f"budget: {replayed_s / 60:.0f} min of replayed durations, {trained_s / 60:.0f} min of training at most",
            flush=True,
        )
        about = {"cpu": machine.cpu, "num_cores": num_cores(), "workers": WORKERS, "load": load}
        about |= {"packages": machine.packages}
        measured = {}
        if options.part != "search":
            replayed = replays(size, folder)
            report_replays(replayed, size)
            sizes = {"num_trials": size.num_replayed, "mean_s": size.mean_s, "tail": TAIL}
            measured["replay"] = {**about, **sizes, "rounds": replayed}
        if options.part != "replay":
            print(f"\nCIFAR-10, {PICTURES}", flush=True)
            searched = searches(size, pictures, folder / "cifar10-sweeps")
            report_searches(searched, size)
            sizes = {"num_trials": size.num_trials, "max_epochs": size.max_epochs}
            measured["search"] = {**about, **sizes, "seeds": size.seeds, "pictures": PICTURES, "arms": searched}
    if not options.quick:
        path = Path(__file__).with_suffix(".json")
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
