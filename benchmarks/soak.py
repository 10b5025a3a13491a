"""Memory, threads and file handles of the server while it answers a hundred thousand requests and swaps its model.

Sixteen clients post pictures one after another, some of which are cut off or no pictures, and connect anew after every
hundred requests. The alias moves from one version to the other every five seconds. Metrics and health are read each
second, as a monitor does, and so is what the process of the server holds.

    python benchmarks/soak.py

It writes `soak.json` beside this script and `docs/images/soak.png`, or both into `--outdir`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `tests.helpers`

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import uvloop  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import MaxNLocator, StrMethodFormatter  # noqa: E402

from flatfix.console import table  # noqa: E402
from flatfix.evaluation.figures import style  # noqa: E402
from flatfix.registry.versions import Version  # noqa: E402
from flatfix.serving.client import FORM, Client, NoAnswerError, form_of  # noqa: E402
from flatfix.tracking.provenance import Provenance  # noqa: E402
from tests.helpers.flatfix_server import FlatfixServer  # noqa: E402
from tests.helpers.images import colours, encode  # noqa: E402
from tests.helpers.serving import Shelf, promoted, two_packages  # noqa: E402

NUM_CORES = 2
NUM_GOOD = 40
SAMPLE_S = 1.0
REQUESTS_A_CONNECTION = 100
MAX_ROWS = 300
ALLOWED = 0.05  # of growth
MIB = 2**20
PACKAGES = ["onnxruntime", "openvino", "fastapi", "uvicorn", "prometheus-client"]


class Post(NamedTuple):
    """Hold a body, and the status that it should be answered with."""

    body: bytes
    status: int


@dataclass
class Sample:
    """Hold what the server holds at a moment.

    Attributes:
        seconds: since the first request.
        requests: that have ended.
        swaps: of the model that were asked for.
        rss_mib: memory of the process.
        threads: of the process.
        handles: of files and sockets; those of the clients' connections among them.
    """

    seconds: float
    requests: int
    swaps: int
    rss_mib: float
    threads: int
    handles: int


class Trend(NamedTuple):
    """Hold the medians of the first and the last tenth of the samples, and the slope over all but the first tenth."""

    first: float
    last: float
    per_100_000: float


def mix() -> list[Post]:
    """Return the bodies: most of them JPEGs of many sizes, and what else comes to a public address."""
    good = [encode(colours(40 + 16 * seed, 56 + 12 * seed, seed), "JPEG", quality=90) for seed in range(NUM_GOOD)]
    others = [encode(colours(200, 300), "PNG"), encode(colours(900, 1200), "JPEG", quality=90)]
    bad = [(good[20][: len(good[20]) // 2], 422), (good[5][:200], 422), (b"", 422), (b"no picture" * 100, 415)]
    return [
        *(Post(form_of(data), 200) for data in (*good, *others)),
        *(Post(form_of(data), status) for data, status in bad),
    ]


class Soak:
    """Keeps a server busy, and notes what it holds.

    Attributes:
        samples: one each second.
        statuses: how often which status or failure came.
        unexpected: answers of another status than that of their `Post`.
        latencies_s: of all answers.
    """

    def __init__(self, server: FlatfixServer, shelf: Shelf, versions: list[Version], swap_s: float) -> None:
        self.samples: list[Sample] = []
        self.statuses: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.latencies_s: list[float] = []
        self._server, self._shelf, self._versions, self._swap_s = server, shelf, versions, swap_s
        self._process = psutil.Process(server.pid)
        self._num_swaps = 0
        self._is_ending = False  # from when the first client has nothing left to send

    async def run(self, num_requests: int, concurrency: int) -> None:
        """Send the requests, and return when all have been answered."""
        posts = itertools.islice(itertools.cycle(mix()), num_requests)
        begun = time.perf_counter()
        beside = [asyncio.create_task(self._watch(begun)), asyncio.create_task(self._swap())]
        await asyncio.gather(*(self._call(posts) for _ in range(concurrency)))
        for task in beside:
            task.cancel()
        for found in await asyncio.gather(*beside, return_exceptions=True):
            if isinstance(found, Exception):
                raise found

    async def _call(self, posts: Iterator[Post]) -> None:
        while some := list(itertools.islice(posts, REQUESTS_A_CONNECTION)):
            async with Client(self._server.url) as client:
                for post in some:
                    await self._post(client, post)
        self._is_ending = True

    async def _post(self, client: Client, post: Post) -> None:
        try:
            answer = await client.post("/predict", post.body, FORM)
        except NoAnswerError as error:
            status = error.reason
        else:
            status = str(answer.status)
            self.latencies_s.append(answer.seconds)
        self.statuses[status] += 1
        if status != str(post.status):
            self.unexpected[f"{status} for {post.status}"] += 1

    async def _watch(self, begun: float) -> None:
        async with Client(self._server.url) as client:
            for number in itertools.count(1):
                await asyncio.sleep(max(0.0, begun + number * SAMPLE_S - time.perf_counter()))
                if self._is_ending:
                    return
                with self._process.oneshot():
                    held = self._process.memory_info().rss / MIB, self._process.num_threads(), self._process.num_fds()
                passed = time.perf_counter() - begun
                self.samples.append(Sample(passed, self.statuses.total(), self._num_swaps, *held))
                await client.get("/metrics")
                await client.get("/health")

    async def _swap(self) -> None:
        for version in itertools.cycle(reversed(self._versions)):
            await asyncio.sleep(self._swap_s)
            await asyncio.to_thread(self._shelf.point, "production", version)
            self._num_swaps += 1


def trend(samples: list[Sample], name: str) -> Trend:
    """Return how one of the figures of the samples went."""
    values = [float(getattr(sample, name)) for sample in samples]
    tenth = max(1, len(values) // 10)
    slope = np.polyfit([sample.requests for sample in samples[tenth:]], values[tenth:], 1)[0]
    return Trend(statistics.median(values[:tenth]), statistics.median(values[-tenth:]), float(100_000 * slope))


def thinned(samples: list[Sample]) -> list[Sample]:
    """Return at most `MAX_ROWS` samples: of neighbours the one with the most memory, so that no peak is lost."""
    step = -(-len(samples) // MAX_ROWS)
    groups = (samples[start : start + step] for start in range(0, len(samples), step))
    return [max(group, key=lambda sample: sample.rss_mib) for group in groups]


def reloads(server: FlatfixServer) -> dict[str, float]:
    """Return what the server counted of its looks at the registry."""
    lines = server.get("/metrics")[1].decode().splitlines()
    series = (line.rpartition(" ") for line in lines if line.startswith("model_reloads_total{"))
    return {name.split('"')[1]: float(value) for name, _, value in series}


def draw(samples: list[Sample], trends: dict[str, Trend], title: str, path: Path) -> None:
    """Draw memory with the share that it may change by, and below it threads and handles."""
    figure, (memory, handles, threads) = style.stacked(title, 5.6, (3, 1.3, 1.3))
    requests = [sample.requests / 1000 for sample in samples]
    first = trends["rss_mib"].first
    values = [sample.rss_mib for sample in samples]
    memory.axhspan(
        first * (1 - ALLOWED),
        first * (1 + ALLOWED),
        color=style.GREEN,
        alpha=0.12,
        linewidth=0,
        label=f"±{100 * ALLOWED:.0f}\u00a0%",
    )
    memory.plot(requests, values, color=style.BLUE, linewidth=1.2, label="resident memory")
    bottom = min(first * 0.85, *values)
    swaps = [after.requests / 1000 for before, after in itertools.pairwise(samples) if after.swaps > before.swaps]
    memory.plot(swaps, [bottom] * len(swaps), "|", color=style.VERMILLION, markersize=9, clip_on=False, label="swap")
    memory.set_ylim(bottom, max(first * 1.15, *values))
    memory.legend(loc="upper right", ncols=3, **style.LEGEND)
    _label(memory, "memory (MiB)")
    for axes, name, label in ((handles, "handles", "handles"), (threads, "threads", "threads")):
        axes.step(
            requests, [getattr(sample, name) for sample in samples], where="post", color=style.BLUE, linewidth=1.2
        )
        axes.set_ylim(0, 1.35 * max(getattr(sample, name) for sample in samples))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        _label(axes, label)
    threads.set_xlabel("requests answered (thousands)", fontsize=style.FONT_SIZE)
    threads.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    threads.set_xlim(0, 1.02 * requests[-1])
    figure.align_ylabels()
    path.parent.mkdir(parents=True, exist_ok=True)
    style.save(figure, path)


def _label(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, fontsize=style.FONT_SIZE)


def report(facts: dict[str, Any], trends: dict[str, Trend]) -> None:
    """Print the tables."""
    names = {"rss_mib": "memory, MiB", "threads": "threads", "handles": "file handles"}
    rows = [
        [
            names[name],
            f"{each.first:,.1f}",
            f"{each.last:,.1f}",
            f"{each.last / each.first - 1:+.1%}",
            f"{each.per_100_000:+.2f}",
        ]
        for name, each in trends.items()
    ]
    print()
    table(["median of", "first tenth", "last tenth", "change", "slope per 100,000 requests"], rows)
    print(f"\nanswers by status: {facts['statuses']}; not as they should be: {facts['unexpected'] or 'none'}")
    print(f"looks at the registry: {facts['reloads']}; latency: {facts['latency_ms']} ms")


def main() -> None:
    """Run the server, print the tables, and write the samples and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--swap-s", type=float, default=5.0, help="seconds from one swap to the next")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--outdir", type=Path, help="for soak.json and soak.png")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])  # which the server inherits
    os.environ.pop("OMP_NUM_THREADS", None)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="flatfix-soak-") as folder:
        shelf, versions = promoted(Path(folder, "shelf"), two_packages(Path(folder, "packages")))
        words = (f"runtime={options.runtime}", "precision=fp32", "poll_s=1")
        with FlatfixServer(Path(folder, "server"), shelf.uri, *words) as server:
            soak = Soak(server, shelf, versions, options.swap_s)
            uvloop.run(soak.run(options.requests, options.concurrency))
            counted = reloads(server)
    machine = Provenance.collect(Path(__file__).parent, PACKAGES)
    trends = {name: trend(soak.samples, name) for name in ("rss_mib", "threads", "handles")}
    seconds = soak.samples[-1].seconds
    facts = {
        "cpu": machine.cpu,
        "num_cores": NUM_CORES,
        "load": load,
        "packages": machine.packages,
        "case": f"cnn at 32 pixels, {options.runtime} fp32",
        "requests": options.requests,
        "concurrency": options.concurrency,
        "swap_s": options.swap_s,
        "seconds": seconds,
        "statuses": dict(soak.statuses),
        "unexpected": dict(soak.unexpected),
        "reloads": counted,
        "latency_ms": {
            f"p{each}": round(1000 * float(np.percentile(soak.latencies_s, each)), 2) for each in (50, 95, 99)
        },
        "trends": {name: each._asdict() for name, each in trends.items()},
        "samples": [
            {name: round(value, 1) for name, value in asdict(sample).items()} for sample in thinned(soak.samples)
        ],
    }
    print(f"{facts['case']}; {machine.cpu}, {NUM_CORES} cores, load {load:.1f} at the start")
    print(f"{options.requests:,} requests, {options.concurrency} clients, {seconds:.0f} s")
    report(facts, trends)
    memory = trends["rss_mib"]
    title = (
        f"{options.requests:,} requests, {counted['swapped'] - 1:.0f} swaps: "
        f"{memory.first:.0f} MiB, then {memory.last:.0f}"
    )
    images = options.outdir or ROOT / "docs" / "images"
    draw(soak.samples, trends, title, images / "soak.png")
    results = options.outdir or Path(__file__).parent
    (results / "soak.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
