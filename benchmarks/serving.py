"""Requests a second, latency, processor time and memory of our server beside four others, and ours under overload.

All answer the same JPEGs over HTTP with the same weights, untrained, since what they learned does not change their
speed. The servers take turns, one at a time in processes of their own, on the same cores; the clients, which cost 25 to
50 microseconds a request and what it takes to send a picture, share these cores. Each server has the threads that it
sets itself. The pictures are photographs (elpv: solar cells of 300 px, written as colour JPEGs) and mosaics of them of
12 megapixels, as a camera gives.

    python benchmarks/serving.py

FastAPI, LitServe and MLflow run as their documentation shows it. `mlflow models serve` has the form that is best for
it, a model that takes a JPEG in base64 and runs the package in onnxruntime: pixels as JSON, which MLflow's ONNX flavour
takes by itself, cost it six to nine times the processor time. At overload, requests are sent at five times the rate
that the server bears, each whether or not others were answered.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `benchmarks.peers` and `tests.helpers`

import numpy as np  # noqa: E402
import uvloop  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.peers import serve_mlflow, serve_torch  # noqa: E402
from benchmarks.peers.process import Watch, cpu_s  # noqa: E402
from benchmarks.peers.serve_arms import ARMS, OURS, OURS_AUTO, Arm, Running  # noqa: E402
from benchmarks.peers.serve_clients import Burst, Post, Window, closed_loop, open_loop  # noqa: E402
from benchmarks.peers.serve_runtime import PACKAGE, Ours  # noqa: E402
from benchmarks.runtime import Case, package_of, untrained  # noqa: E402
from flatfix.console import table  # noqa: E402
from flatfix.data.sources.elpv import ElpvSource  # noqa: E402
from flatfix.inference.package import Package  # noqa: E402
from flatfix.registry.packages import as_mlflow_model  # noqa: E402
from flatfix.registry.versions import DIGEST_TAG, JOURNAL_TAG  # noqa: E402
from flatfix.tracking.connection import connect, preflight  # noqa: E402
from flatfix.tracking.provenance import Provenance  # noqa: E402
from tests.helpers.mlflow_db import fresh_database  # noqa: E402

SEED = 0
CASE, QUICK_CASE = Case("resnet18", 224), Case("cnn", 32)
NUM_CORES = 2
CLIENTS, QUICK_CLIENTS = (1, 4, 16, 64), (1, 4)
SMALL, LARGE = "300 px", "12 megapixels"
NUM_SMALL, NUM_LARGE = 64, 6
LARGE_SIZE = (4000, 3000)
JPEG_QUALITY = 90
OVERLOAD = 5  # times what the server bears
OVERLOAD_S = 10.0
PACKAGES = ["torch", "onnxruntime", "openvino", "fastapi", "uvicorn", "litserve", "mlflow"]

Pictures = dict[str, list[bytes]]
Cell = dict[str, Any]


def photographs() -> Pictures:
    """Return JPEGs of photographs, and mosaics of photographs."""
    source, draws = ElpvSource(), random.Random(SEED)
    cells = [source.read(record) for record in draws.sample(source.records(), NUM_SMALL)]
    small = [Image.open(io.BytesIO(cell)).convert("RGB") for cell in cells]
    return {SMALL: [jpeg(picture) for picture in small], LARGE: [jpeg(mosaic(small, draws)) for _ in range(NUM_LARGE)]}


def mosaic(pictures: list[Image.Image], draws: random.Random) -> Image.Image:
    """Cover 12 megapixels with photographs."""
    canvas = Image.new("RGB", LARGE_SIZE)
    width, height = pictures[0].size
    for left in range(0, LARGE_SIZE[0], width):
        for top in range(0, LARGE_SIZE[1], height):
            canvas.paste(draws.choice(pictures), (left, top))
    return canvas


def jpeg(picture: Image.Image) -> bytes:
    picture.save(file := io.BytesIO(), "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def prepare(case: Case, folder: Path) -> str:
    """Write the weights in every form that a server reads, and return the address of MLflow with the package in it."""
    classifier = untrained(case)
    package = as_mlflow_model(package_of(classifier, folder / "exported"), folder / PACKAGE)
    serve_torch.save(classifier, folder)
    serve_mlflow.save(package.folder, folder / "mlflow", case.size)
    return promoted(package, folder / "registry")


def promoted(package: Package, folder: Path) -> str:
    """Put a package into production."""
    uri = fresh_database(folder)
    client = connect(uri)
    run = client.create_run(preflight(uri, "flatfix"))
    client.log_artifacts(run.info.run_id, str(package.folder), "package")
    client.create_registered_model("bench", tags={JOURNAL_TAG: run.info.run_id})
    version = client.create_model_version(
        "bench", f"{run.info.artifact_uri}/package", run.info.run_id, {DIGEST_TAG: package.digest}
    )
    client.set_registered_model_alias("bench", "production", version.version)
    return uri


class Bench:
    """Runs the servers over one set of pictures and weights."""

    def __init__(self, folder: Path, uri: str, pictures: Pictures, clients: tuple[int, ...], duration_s: float) -> None:
        self._folder, self._uri, self._pictures = folder, uri, pictures
        self._clients, self._duration_s = clients, duration_s
        expected = Ours(folder)
        self._expected = {
            size: np.array(expected.answers([expected.pixels(data) for data in some[:4]]))
            for size, some in pictures.items()
        }

    @contextmanager
    def running(self, name: str) -> Iterator[tuple[Running, Watch]]:
        """Run a server, with an eye on its memory."""
        work = Path(tempfile.mkdtemp(prefix="server-", dir=self._folder))
        server = Running(ARMS[name], self._folder, self._uri, work, self._pictures[SMALL][0])
        with server, Watch(server.pid) as watch:
            yield server, watch

    def turn(self, name: str) -> dict[str, list[Cell]]:
        """Return what a server did, by size of the pictures, for each number of clients."""
        cells: dict[str, list[Cell]] = {}
        with self.running(name) as (server, watch):
            runs = ""
            if name in (OURS, OURS_AUTO):
                health = server.health()
                runs = f": {health['runtime']} {health['precision']}"
            print(f"{name}{runs}", flush=True)
            for size, pictures in self._pictures.items():
                difference = self._difference(server, size)
                posts = posts_of(ARMS[name], pictures)
                cells[size] = []
                for num_clients in self._clients:
                    loop = closed_loop(server.url, posts, num_clients, self._duration_s, lambda: cpu_s(watch.root))
                    cell = {"clients": num_clients, **figures_of(uvloop.run(loop))}
                    cells[size].append({**cell, "peak_bytes": watch.peak_bytes, "probability_differs_by": difference})
        return cells

    def overload(self, name: str, duration_s: float) -> Cell:
        """Return what a server did at `OVERLOAD` times its peak, and that peak."""
        with self.running(name) as (server, watch):
            posts = posts_of(ARMS[name], self._pictures[SMALL])
            peak = max(
                rate_of(uvloop.run(closed_loop(server.url, posts, some, duration_s / 2, lambda: cpu_s(watch.root))))
                for some in (16, 32, 64)
            )
            burst = uvloop.run(open_loop(server.url, posts, OVERLOAD * peak, duration_s))
            return {"peak_per_s": peak, "peak_bytes": watch.peak_bytes, **burst_figures(burst, peak)}

    def _difference(self, server: Running, size: str) -> float:
        """Return the largest difference of a probability from our package's, to see that all serve the same model."""
        expected = self._expected[size]
        found = np.array([server.probabilities(data) for data in self._pictures[size][: len(expected)]])
        return float(np.abs(found - expected).max())


def posts_of(arm: Arm, pictures: list[bytes]) -> list[Post]:
    return [Post(arm.target, arm.body(data), arm.content_type) for data in pictures]


def rate_of(window: Window) -> float:
    return len(window.latencies_s) / window.seconds


def figures_of(window: Window) -> Cell:
    """Return what the tables show of a window."""
    answered = max(len(window.latencies_s), 1)
    return {
        "answers": len(window.latencies_s),
        "per_s": rate_of(window),
        **percentiles(window.latencies_s),
        "cpu_ms": 1000 * window.cpu_s / answered,
        "failures": window.failures,
    }


def burst_figures(burst: Burst, peak: float) -> Cell:
    """Return what the table shows of an overload."""
    goodput = len(burst.answered_s) / burst.seconds
    return {
        "sent_per_s": burst.sent / burst.seconds,
        "goodput_per_s": goodput,
        "goodput_of_peak": goodput / peak,
        "answers": percentiles(burst.answered_s),
        "refused": len(burst.refused_s),
        "late": burst.late,
        "refusals": percentiles(burst.refused_s),
        "failures": burst.failures,
        "client_cores": burst.client_cpu_s / burst.seconds,
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds; nan of nothing."""
    return {
        f"p{each}_ms": 1000 * float(np.percentile(seconds, each, method="inverted_cdf")) if seconds else float("nan")
        for each in (50, 95, 99)
    }


def medians(rounds: list[dict[str, list[Cell]]], size: str, index: int) -> Cell:
    """Return the median over the rounds of each figure."""
    cells = [each[size][index] for each in rounds]
    numbers = [key for key, value in cells[0].items() if isinstance(value, int | float)]
    failures = sum(sum(cell["failures"].values()) for cell in cells)
    return {**{key: statistics.median(cell[key] for cell in cells) for key in numbers}, "failures": failures}


def report(results: dict[str, list[dict[str, list[Cell]]]], clients: tuple[int, ...]) -> None:
    """Print a table for each size of pictures and number of clients."""
    header = ("requests/s", "ours is", "auto is", "p50 ms", "p95", "p99", "CPU ms", "peak MB", "differs by", "failed")
    for size in next(iter(results.values()))[0]:
        for index, num_clients in enumerate(clients):
            found = {name: medians(rounds, size, index) for name, rounds in results.items()}
            rows = []
            for name, cell in found.items():
                ratios = [
                    f"{of['per_s'] / cell['per_s']:.1f}x" if of else "" for of in map(found.get, (OURS, OURS_AUTO))
                ]
                times = [f"{cell[key]:,.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "cpu_ms")]
                memory = f"{cell['peak_bytes'] / 1e6:,.0f}"
                differs = f"{cell['probability_differs_by']:.0e}"
                rows.append([name, f"{cell['per_s']:,.1f}", *ratios, *times, memory, differs, f"{cell['failures']}"])
            print()
            table((f"{size}, {num_clients} client{'s' * (num_clients > 1)}", *header), rows)


def report_overload(overloads: dict[str, list[Cell]]) -> None:
    """Print what came of the overload."""
    header = (
        "peak/s",
        "sent/s",
        "answered/s",
        "of peak",
        "answers p99 ms",
        "refused",
        "refusals p50",
        "p99",
        "late",
        "failed",
        "client",
    )
    rows = []
    for name, cells in overloads.items():
        for cell in cells:
            rates = [f"{cell[key]:,.0f}" for key in ("peak_per_s", "sent_per_s", "goodput_per_s")]
            refusals = [f"{cell['refused']:,}", *(f"{cell['refusals'][key]:,.1f}" for key in ("p50_ms", "p99_ms"))]
            refusals.append(f"{cell['late']:,}")
            failed = f"{sum(cell['failures'].values())}"
            share, p99 = f"{cell['goodput_of_peak']:.0%}", f"{cell['answers']['p99_ms']:,.0f}"
            rows.append([name, *rates, share, p99, *refusals, failed, f"{cell['client_cores']:.2f} cores"])
    print()
    table((f"{OVERLOAD} times the peak, each round", *header), rows)


def main() -> None:
    """Measure, print the tables, and write them as JSON beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each server and number of clients in a round")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="servers; writes nothing")
    parser.add_argument("--quick", action="store_true", help="a small model, to see that it works; writes nothing")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])  # which the servers inherit
    for name in ("OMP_NUM_THREADS", "FLATFIX_SERVE_CONFIG", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    rounds, duration_s = (1, 0.5) if options.quick else (options.rounds, options.seconds)
    clients = QUICK_CLIENTS if options.quick else CLIENTS
    case = QUICK_CASE if options.quick else CASE
    machine = Provenance.collect(Path(__file__).parent, PACKAGES)
    load = os.getloadavg()[0]
    pictures = photographs()
    sizes = {size: round(statistics.mean(map(len, some)) / 1000) for size, some in pictures.items()}
    print(f"{case}; {machine.cpu}, {NUM_CORES} cores, {rounds} rounds, seed {SEED}; {machine.packages}")
    print(f"kB a picture: {sizes}; load of the machine at the start: {load:.1f}")
    results: dict[str, list[dict[str, list[Cell]]]] = {name: [] for name in options.arms}
    overloads: dict[str, list[Cell]] = {name: [] for name in options.arms if name in (OURS, OURS_AUTO)}
    with tempfile.TemporaryDirectory(prefix="flatfix-serving-") as folder:
        bench = Bench(Path(folder), prepare(case, Path(folder)), pictures, clients, duration_s)
        for number in range(rounds):
            print(f"round {number + 1}")
            for shift in range(len(options.arms)):
                name = options.arms[(number + shift) % len(options.arms)]
                results[name].append(bench.turn(name))
            for name, cells in overloads.items():
                cells.append(bench.overload(name, 1.0 if options.quick else OVERLOAD_S))
    report(results, clients)
    if overloads:
        report_overload(overloads)
    if options.quick or options.arms != list(ARMS):
        return
    facts = {
        "case": str(case),
        "cpu": machine.cpu,
        "num_cores": NUM_CORES,
        "load": load,
        "packages": machine.packages,
        "seed": SEED,
        "kilobytes_a_picture": sizes,
        "seconds": duration_s,
        "rounds": results,
        "overload": overloads,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
