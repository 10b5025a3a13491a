"""The first and the later epochs from S3: ours beside one GET a picture, LitData, WebDataset and MosaicML Streaming.

All read the same encoded pictures from the same SeaweedFS server, with which they share the processors of this machine,
and hand out shuffled batches `[N, size, size, 3]` uint8 with labels. They take turns, each in a process of its own with
two workers. The first epoch begins with an empty cache and has all that a run does before its first batch but starting
Python and importing; what the server reads lies in the page cache.

    python benchmarks/s3_loader.py --root /data/cifar10/train
    python benchmarks/s3_loader.py --pictures elpv --size 64

Every data set is laid out by the system's own writer in about `task.NUM_PIECES` shards, as the bytes of the files, in
seeded order; settings are those of the documentation, and workers live on from epoch to epoch. LitData decodes and
scales with torchvision, the other peers with Pillow: to RGB, then bilinear. MosaicML Streaming wants an older numpy:
its environment, 7 GB with PyTorch, is made in outputs/ and kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for `benchmarks.peers` and `tests.helpers`

from benchmarks.loader import ARCHIVE, unpacked  # noqa: E402
from benchmarks.peers.child import loopback_bytes  # noqa: E402
from benchmarks.peers.process import peak_bytes  # noqa: E402
from flatfix.data.sources.base import Source  # noqa: E402
from flatfix.data.sources.elpv import ElpvSource  # noqa: E402
from flatfix.data.sources.folder import FolderSource  # noqa: E402
from flatfix.tracking.provenance import Provenance  # noqa: E402
from tests.helpers.s3_server import S3Server  # noqa: E402

MOSAICML = "mosaicml-streaming==0.13.0"
MOSAICML_FOLDER = ROOT / "outputs" / "mosaicml-streaming"
SEED = 0
SAMPLE = 5_000  # pictures that one thread asks for: a whole epoch of CIFAR-10 takes it minutes
OBJECT_BYTES = 32 << 20


@dataclass(frozen=True)
class System:
    """Name the module of `benchmarks.peers` that reads, whose form of the data set it reads, and what it is told."""

    module: str
    form: str
    options: dict[str, Any] = field(default_factory=dict)


OURS = "flatfix"
SYSTEMS = {
    OURS: System("flatfix", "flatfix"),
    "flatfix, streamed": System("flatfix", "flatfix", {"gigabytes": 0}),
    "LitData": System("litdata", "litdata"),
    "WebDataset": System("webdataset", "webdataset"),
    "MosaicML Streaming": System("mosaicml", "mosaicml"),
    "GET a picture, 16 threads": System("files", "files", {"num_threads": 16}),
    "GET a picture, 1 thread": System("files", "files", {"num_threads": 1, "sample": SAMPLE}),
    "tensor in memory": System("memory", "flatfix"),
}
WITHOUT_FIRST = "tensor in memory"


class Bench:
    """Runs the systems as child processes, over one data set and one server."""

    def __init__(self, server: S3Server, pictures: Path, size: int, batch_size: int) -> None:
        self._server = server
        self._given = {"pictures": str(pictures), "size": size, "batch_size": batch_size}
        self._pythons = {"mosaicml": str(MOSAICML_FOLDER / "bin" / "python")}

    def write(self, form: str) -> float:
        """Lay the data set out as a system wants it, and return the seconds that this took, with Python's start."""
        start = time.perf_counter()
        self._run("write", System(form, form))
        return time.perf_counter() - start

    def read(self, system: System) -> dict[str, Any]:
        """Return what `peers.child` measures, and the most memory that the process and its workers had."""
        output, peak = self._run("read", system)
        return {**json.loads(output.splitlines()[-1]), "peak_bytes": peak}

    def _run(self, verb: str, system: System) -> tuple[str, int]:
        python = self._pythons.get(system.module, sys.executable)
        with tempfile.TemporaryDirectory(prefix="flatfix-s3-loader-") as folder, tempfile.TemporaryFile("w+") as output:
            task = {**self._given, **system.options, "folder": folder}
            task["uri"] = f"s3://{self._server.bucket}/{system.form}"
            command = [python, "-m", "benchmarks.peers.child", verb, system.module, json.dumps(task)]
            (left := Path(folder, "left")).mkdir()
            environment = self._environment() | {"TMPDIR": str(left)}  # some leave files there
            with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output) as process:
                peak = peak_bytes(process)
            output.seek(0)
            text = output.read()
            if process.returncode:
                raise RuntimeError(f"{verb} {system.module}: exit code {process.returncode}\n{text[-4000:]}")
            return text, peak

    def _environment(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return {
            **mine,
            "AWS_ENDPOINT_URL": self._server.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "owner",
            "AWS_SECRET_ACCESS_KEY": "secret of owner",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


def has_mosaicml() -> bool:
    """Make the environment of MosaicML Streaming where there is none yet; say why it cannot be made."""
    made = MOSAICML_FOLDER / ".made"
    if not made.is_file():
        print(f"making {MOSAICML_FOLDER}", flush=True)
        python = MOSAICML_FOLDER / "bin" / "python"
        pins = [MOSAICML, *(f"{name}=={version(name)}" for name in ("torch", "Pillow"))]
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", MOSAICML_FOLDER], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
            made.touch()
        except subprocess.CalledProcessError as error:
            print(f"{MOSAICML} is left out: {error}")
            return False
    return True


def lay_out(source: Source, folder: Path, limit: int | None) -> tuple[int, int]:
    """Write the pictures into folders of classes, and return their number and bytes."""
    records = list(source.records())
    if limit is not None:
        records = random.Random(SEED).sample(records, min(limit, len(records)))
    num_bytes = 0
    for number, record in enumerate(records):
        path = folder / record.label / f"{number:06}.{record.extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        num_bytes += path.write_bytes(source.read(record))
    return len(records), num_bytes


def hops(server: S3Server) -> float:
    """Return how often the loopback interface carries a byte that is asked for: the server's parts talk over it too."""
    address = server.put("hops", os.urandom(OBJECT_BYTES))
    before = loopback_bytes()
    server.client.get_object(Bucket=server.bucket, Key=address.rpartition("/")[2])["Body"].read()
    return (loopback_bytes() - before) / OBJECT_BYTES


def table(runs: dict[str, list[dict[str, Any]]], num_hops: float) -> dict[str, dict[str, float | None]]:
    """Print the medians, and return them."""
    medians = {}
    for name, results in runs.items():
        first = statistics.median(result["num_first"] / result["first_s"] for result in results)
        medians[name] = {
            "first": None if name == WITHOUT_FIRST else first,
            "later": statistics.median(count / seconds for result in results for count, seconds in result["later"]),
            "peak_mib": statistics.median(result["peak_bytes"] for result in results) / 2**20,
            "moved_mb": statistics.median(result["bytes_moved"] for result in results) / num_hops / 1e6,
        }
    print(
        f"\n{'':27}{'first epoch':>13}{'ours / it':>11}{'later epochs':>14}{'ours / it':>11}{'peak MiB':>10}{'MB':>8}"
    )
    ours = medians[OURS]
    for name, values in medians.items():
        first = values["first"] and f"{values['first']:13,.0f}{ours['first'] / values['first']:11.2f}"
        moved = values["first"] and f"{values['moved_mb']:8,.1f}"
        rest = f"{values['later']:14,.0f}{ours['later'] / values['later']:11.2f}{values['peak_mib']:10,.0f}"
        print(f"{name:27}{first or '':24}{rest}{moved or ''}")
    return medians


def main() -> None:
    """Measure, print the table, and write it as JSON beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", choices=("cifar10", "elpv"), default="cifar10")
    parser.add_argument("--root", type=Path, help=f"folder of class folders; the default unpacks {ARCHIVE}")
    parser.add_argument("--size", type=int, default=32, help="pixels a side of what is handed out")
    parser.add_argument("--limit", type=int, help="read so many pictures only, for a quick trial")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="measure these, and ours"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flatfix-s3-loader-") as temporary:
        folder = Path(temporary)
        if options.pictures == "elpv":
            source: Source = ElpvSource()
        else:
            source = FolderSource(options.root or unpacked(folder, parser))
        num_pictures, num_bytes = lay_out(source, folder / "pictures", options.limit)
        print(f"{options.pictures}: {num_pictures:,} pictures, {num_bytes / 1e6:.1f} MB", flush=True)
        facts = {"pictures": options.pictures, "num_pictures": num_pictures, "num_bytes": num_bytes}
        with S3Server(folder / "server") as server:
            bench = Bench(server, folder / "pictures", options.size, options.batch_size)
            facts |= {"num_hops": hops(server), **measure(bench, options)}
        report(facts, options)


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Write the data set in every form, and run the rounds."""
    systems = {name: SYSTEMS[name] for name in SYSTEMS if name in (OURS, *options.only)}
    if any(system.module == "mosaicml" for system in systems.values()) and not has_mosaicml():
        systems = {name: system for name, system in systems.items() if system.module != "mosaicml"}
    written_s = {}
    for form in dict.fromkeys(system.form for system in systems.values()):
        written_s[form] = bench.write(form)
        print(f"written for {form} in {written_s[form]:.1f} s", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    failures: dict[str, int] = {}
    for number in range(options.rounds):
        # The order rotates, so that none always comes after the same one.
        for shift in range(len(systems)):
            name = list(systems)[(number + shift) % len(systems)]
            try:
                runs[name].append(bench.read(systems[name]))
            except RuntimeError as error:
                if systems[name].module == OURS:
                    raise
                failures[name] = failures.get(name, 0) + 1  # it is measured in the other rounds
                print(f"round {number + 1}: {error}", flush=True)
                continue
            print(f"round {number + 1}: {name}: first epoch {runs[name][-1]['first_s']:.2f} s", flush=True)
    return {
        "written_s": written_s,
        "failures": failures,
        "runs": {name: found for name, found in runs.items() if found},
    }


def report(facts: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table; write the JSON, unless this was a trial with a part of the pictures or systems."""
    machine = Provenance.collect(ROOT, ["torch", "Pillow", "boto3", "litdata", "webdataset"])
    print(f"\n{machine.cpu}, {machine.num_cpus} processors; {machine.packages}, {MOSAICML}")
    print(
        f"{facts['num_pictures']:,} pictures of {options.pictures} at {options.size} pixels, batch {options.batch_size}"
    )
    print(f"pictures a second, medians of {options.rounds} rounds in turns, seed {SEED}")
    print("peak MiB: proportional set size of all processes of a system")
    print(f"MB: moved in the first epoch; the loopback interface carries each byte {facts['num_hops']:.1f} times")
    if facts["num_pictures"] > SAMPLE:
        print(f"one thread asks for {SAMPLE:,} of the pictures in an epoch")
    for name, count in facts["failures"].items():
        print(f"{name} ended with an error in {count} of {options.rounds} rounds")
    facts |= {
        "cpu": machine.cpu,
        "num_cpus": machine.num_cpus,
        "packages": machine.packages,
        "mosaicml": MOSAICML,
        "size": options.size,
        "batch_size": options.batch_size,
        "seed": SEED,
        "medians": table(facts["runs"], facts["num_hops"]),
    }
    if options.limit is None and set(options.only) == set(SYSTEMS):
        path = Path(__file__).with_name(f"s3_loader_{options.pictures}_{options.size}.json")
        path.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
