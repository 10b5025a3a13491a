"""What a million pictures cost beside ten thousand: to publish, to open, and to the first batch.

Pictures of 8 x 8 random pixels, in folders of a thousand, are published to a folder. Then each of these is a process
of its own: publishing; opening the version and taking one batch from the shards (streamed); decoding it all, and again
from the decoded cache. The files of a million take 4 GB for a while, and shards and store 5 GB; TMPDIR names the disk.

    python benchmarks/million.py
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `benchmarks.peers`

from benchmarks.peers.process import peak_bytes  # noqa: E402
from flatfix.data.publish import publish  # noqa: E402
from flatfix.data.sources.folder import FolderSource  # noqa: E402
from flatfix.data.splits import SplitRule  # noqa: E402
from flatfix.data.store import LocalStore  # noqa: E402
from flatfix.data.version import open_version  # noqa: E402
from flatfix.tracking.provenance import Provenance  # noqa: E402

SEED = 0
SIZE = 8
HEADER = f"P6 {SIZE} {SIZE} 255\n".encode()
IN_A_FOLDER = 1_000
NUM_CLASSES = 10
BATCH_SIZE = 128
NAME, VERSION = "tiny", "v1"


def make(folder: Path, count: int) -> None:
    """Write so many distinct pictures into class folders."""
    draw = np.random.default_rng(SEED)
    for start in range(0, count, IN_A_FOLDER):
        number = start // IN_A_FOLDER
        below = folder / f"class_{number % NUM_CLASSES}" / f"{number:04}"
        below.mkdir(parents=True)
        pixels = draw.integers(0, 256, (min(IN_A_FOLDER, count - start), SIZE * SIZE * 3), np.uint8)
        for place, picture in enumerate(pixels):
            (below / f"{place:03}.ppm").write_bytes(HEADER + picture.tobytes())


def published(folder: Path) -> dict[str, float]:
    """Publish the pictures; return the seconds, and the most bytes that this process has had: it starts no other."""
    start = time.perf_counter()
    source, store = FolderSource(folder / "pictures"), LocalStore(folder / "store")
    publish(source, store, name=NAME, version=VERSION, rule=SplitRule())
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()  # getrusage's ru_maxrss begins with that of the parent
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    return {"seconds": seconds, "peak_bytes": peak_kib * 1024}


def first_batch(folder: Path, gigabytes: float | None) -> dict[str, float]:
    """Open the version, take a training batch, and return the seconds."""
    # Not at the top: these import torch, of whose memory publishing is to be free.
    from flatfix.data.cache import decoded
    from flatfix.data.datamodule import BatchLoader

    start = time.perf_counter()
    version = open_version(LocalStore(folder / "store"), NAME, VERSION)
    examples = decoded(
        version, "train", image_size=SIZE, resize="squash", cache_dir=folder / "cache", gigabytes=gigabytes
    )
    batch = next(iter(BatchLoader(examples, BATCH_SIZE, is_training=True, seed=SEED)))
    assert batch.inputs.shape == (BATCH_SIZE, SIZE, SIZE, 3)
    return {"seconds": time.perf_counter() - start}


STEPS = {
    "published": published,
    "streamed": lambda folder: first_batch(folder, gigabytes=0),
    "decoded": lambda folder: first_batch(folder, gigabytes=None),
}

TITLES = {
    "streamed": "first batch, streamed",
    "decoded": "first batch, decoding all first",
    "cached": "first batch, from the cache",
}


def run(step: str, folder: Path) -> dict[str, float]:
    """Take a step in a process of its own; return what it says, its time with all imports, and its peak of memory."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, __file__, "--step", step, str(folder)], stdout=subprocess.PIPE) as process:
        peak = peak_bytes(process)
        assert process.stdout
        output = process.stdout.read().decode()
    if process.returncode:
        raise RuntimeError(f"{step}: exit code {process.returncode}\n{output}")
    process_s = time.perf_counter() - start
    return {"process_s": process_s, "peak_bytes": peak, **json.loads(output.splitlines()[-1])}


def measure(count: int, rounds: int) -> dict[str, Any]:
    """Return what each step costs with so many pictures."""
    with tempfile.TemporaryDirectory(prefix="flatfix-million-") as temporary:
        folder = Path(temporary)
        make(folder / "pictures", count)
        steps = {"published": [run("published", folder)]}
        shutil.rmtree(folder / "pictures")
        steps["streamed"] = [run("streamed", folder) for _ in range(rounds)]
        steps["decoded"] = [run("decoded", folder)]
        steps["cached"] = [run("decoded", folder) for _ in range(rounds)]
    return {
        step: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for step, runs in steps.items()
    }


def report(sizes: list[int], results: list[dict[str, Any]]) -> None:
    """Print the table."""
    rows: list[tuple[str, list[float], str]] = []
    rates = [size / result["published"]["seconds"] for size, result in zip(sizes, results, strict=True)]
    rows += [("published, pictures a second", rates, ",.0f")]
    rows += [("  peak MiB", [result["published"]["peak_bytes"] / 2**20 for result in results], ",.0f")]
    for step, title in TITLES.items():
        rows += [(f"{title}, s", [result[step]["seconds"] for result in results], ",.2f")]
        rows += [("  with Python and imports, s", [result[step]["process_s"] for result in results], ",.2f")]
        rows += [("  peak MiB", [result[step]["peak_bytes"] / 2**20 for result in results], ",.0f")]
    print(f"\n{'':34}" + "".join(f"{size:>14,}" for size in sizes))
    for title, values, how in rows:
        print(f"{title:34}" + "".join(f"{value:>14{how}}" for value in values))
    growth = (results[-1]["published"]["peak_bytes"] - results[0]["published"]["peak_bytes"]) / (sizes[-1] - sizes[0])
    print(f"\nfrom {sizes[0]:,} to {sizes[-1]:,}: the rate of publishing x {rates[-1] / rates[0]:.2f}, ", end="")
    print(f"its memory + {growth:.0f} bytes a picture")


def main() -> None:
    """Measure, print the table, and write it as JSON beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=[10_000, 1_000_000], help="others are a trial")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step, folder = options.step
        print(json.dumps(STEPS[step](Path(folder))))
        return
    results = []
    for size in options.sizes:
        results.append(measure(size, options.rounds))
        print(f"{size:,}: {results[-1]}", flush=True)
    machine = Provenance.collect(ROOT, ["numpy", "pyarrow", "torch"])
    print(f"\n{machine.cpu}, {machine.num_cpus} processors; {machine.packages}")
    print(f"pictures of {SIZE} x {SIZE}, batch {BATCH_SIZE}, seed {SEED}; first batches streamed and from the cache:")
    print(f"medians of {options.rounds} runs. Memory: resident (publishing), proportional of all processes (reading)")
    report(options.sizes, results)
    if options.sizes == parser.get_default("sizes"):
        facts = {
            "cpu": machine.cpu,
            "num_cpus": machine.num_cpus,
            "packages": machine.packages,
            "rounds": options.rounds,
            "seed": SEED,
            "sizes": dict(zip(options.sizes, results, strict=True)),
        }
        Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
